// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <mpi.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory_resource>
#include <new>
#include <vector>

#include <expar/communicator.hpp>

/// Memory whose large pieces are zero where nothing else was written, and take none there: rows of
/// zeros on many simulated ranks fit into one machine.
class hollow_memory : public std::pmr::memory_resource {
 public:
  static constexpr std::size_t page = 4096, large = std::size_t{1} << 20;

  /// All large pieces are zero from now on.
  void clear() {
    for (auto [at, bytes] : pieces_) madvise(at, bytes, MADV_DONTNEED);
  }
  /// What is in [at, at + bytes) is zero from now on.
  static void clear(std::byte* at, std::size_t bytes) {
    auto const first = reinterpret_cast<std::uintptr_t>(at), last = first + bytes;
    auto const from = (first + page - 1) / page * page, to = last / page * page;
    if (from >= to) {
      std::memset(at, 0, bytes);
      return;
    }
    std::memset(at, 0, from - first);
    std::memset(at + (to - first), 0, last - to);
    madvise(at + (from - first), to - from, MADV_DONTNEED);
  }

 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    if (bytes < large) return std::pmr::new_delete_resource()->allocate(bytes, alignment);
    void* const at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) throw std::bad_alloc();
    madvise(at, bytes, MADV_HUGEPAGE);
    pieces_[at] = bytes;
    return at;
  }
  void do_deallocate(void* at, std::size_t bytes, std::size_t alignment) override {
    if (bytes < large) return std::pmr::new_delete_resource()->deallocate(at, bytes, alignment);
    pieces_.erase(at);
    munmap(at, bytes);
  }
  bool do_is_equal(std::pmr::memory_resource const& o) const noexcept override {
    return this == &o;
  }

  std::map<void*, std::size_t> pieces_;
};

/// A communicator whose ranks are simulated in one process. Segments are sent by `comm`, as long as
/// they are, but from memory without content; what is not zero in them is copied from rank to rank
/// beside it. What was sent is zero afterwards.
template <class Comm>
class hollow_communicator {
 public:
  static constexpr expar::communicator_traits traits = Comm::traits;

  /// Collective. No message is longer than `most` bytes in all.
  hollow_communicator(Comm& comm, std::size_t most)
      : comm_(comm),
        blank_(static_cast<std::byte*>(SMPI_SHARED_MALLOC(most))),
        peers_(static_cast<std::size_t>(comm.size())) {
    auto const own = reinterpret_cast<std::uintptr_t>(sent_);
    comm_.all_gather({}, &own, peers_.data(), sizeof own);
  }
  hollow_communicator(hollow_communicator const&) = delete;
  /// Collective: others may still read what this rank sent.
  ~hollow_communicator() {
    comm_.barrier({});
    SMPI_SHARED_FREE(blank_);
  }

  int rank() const noexcept { return comm_.rank(); }
  int size() const noexcept { return comm_.size(); }
  void barrier(expar::host_context const& on) const { comm_.barrier(on); }
  void all_to_all(expar::host_context const& on, void const* in, void* out,
                  std::size_t bytes) const {
    comm_.all_to_all(on, in, out, bytes);
  }
  void all_gather(expar::host_context const& on, void const* in, void* out,
                  std::size_t bytes) const {
    comm_.all_gather(on, in, out, bytes);
  }
  void all_to_all_v(expar::host_context const& on, void const* in, expar::byte_counts counts,
                    expar::byte_counts from, void* out, expar::byte_counts out_counts,
                    expar::byte_counts to) {
    // A rank can be one call ahead of another, which finds here what it was sent.
    std::size_t const turn = turn_ = 1 - turn_;
    sent_[turn].keep(static_cast<std::byte const*>(in), counts, from);
    for (std::size_t p = 0; p < peers_.size(); ++p)
      hollow_memory::clear(static_cast<std::byte*>(const_cast<void*>(in)) + from[p], counts[p]);
    comm_.all_to_all_v(on, blank_, counts, from, blank_, out_counts, to);
    for (std::size_t p = 0; p < peers_.size(); ++p) {
      auto* const segment = static_cast<std::byte*>(out) + to[p];
      hollow_memory::clear(segment, out_counts[p]);
      reinterpret_cast<parts const*>(peers_[p])[turn].put(static_cast<std::size_t>(rank()),
                                                          segment);
    }
  }

 private:
  /// Of a message what is not zero, in pieces.
  class parts {
   public:
    void keep(std::byte const* in, expar::byte_counts counts, expar::byte_counts from) {
      pieces_.assign(counts.size(), {});
      content_.clear();
      for (std::size_t p = 0; p < counts.size(); ++p)
        for (std::size_t at = 0, n = 0; at < counts[p]; at += n) {
          n = std::min(counts[p] - at, piece_bytes);
          std::byte const* const bytes = in + from[p] + at;
          if (*bytes == std::byte{} && std::memcmp(bytes, bytes + 1, n - 1) == 0) continue;
          pieces_[p].push_back({at, content_.size(), n});
          content_.insert(content_.end(), bytes, bytes + n);
        }
    }
    void put(std::size_t to, std::byte* segment) const {
      for (piece const& p : pieces_[to])
        std::memcpy(segment + p.at, content_.data() + p.kept_at, p.bytes);
    }

   private:
    static constexpr std::size_t piece_bytes = 1024;
    struct piece {
      std::size_t at, kept_at, bytes;
    };
    std::vector<std::vector<piece>> pieces_;  // of the segment to each rank
    std::vector<std::byte> content_;
  };

  Comm& comm_;
  std::byte* blank_;
  parts sent_[2];
  std::size_t turn_ = 0;
  std::vector<std::uintptr_t> peers_;  // where `sent_` of each rank is
};
