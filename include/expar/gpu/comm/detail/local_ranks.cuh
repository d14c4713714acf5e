// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <vector>

#include <expar/gpu/detail/buffer.cuh>
#include <expar/gpu/exchange/ranks.cuh>

namespace expar::inline v0::gpu::detail {

/// What a kernel sees of a window that is one allocation per rank.
struct window_parts {
  std::byte* const* parts;  // [size], where the kernel's device reads it
  int rank_, size_;

  EXPAR_HD int rank() const noexcept { return rank_; }
  EXPAR_HD int size() const noexcept { return size_; }
  EXPAR_HD void* peer(int p, std::size_t offset) const noexcept { return parts[p] + offset; }
};

/// The windows of all ranks of one process.
class local_windows {
 public:
  std::size_t size_bytes() const noexcept { return bytes_; }
  window_parts view(int rank) const noexcept {
    return {tables_[static_cast<std::size_t>(rank)].data(), rank, static_cast<int>(tables_.size())};
  }
  std::byte* part(int rank) const noexcept { return parts_[static_cast<std::size_t>(rank)].data(); }

  /// `memory(rank, ctx)` is the context that serves the part of a rank.
  template <class Group, class Memory>
  static local_windows allocate(Group& group, std::size_t bytes, Memory memory) {
    local_windows w;
    w.bytes_ = bytes;
    std::vector<std::byte*> parts;
    for (int r = 0; r < group.size(); ++r)
      group.on(r, [&](context const& ctx) {
        w.parts_.emplace_back(memory(r, ctx))
            .resize("allocate_window", static_cast<index_t>(bytes));
        parts.push_back(w.parts_.back().data());
      });
    for (int r = 0; r < group.size(); ++r)
      group.on(r, [&](context const& ctx) {
        auto& table = w.tables_.emplace_back(ctx);
        table.resize("allocate_window", static_cast<index_t>(parts.size()));
        check(cudaMemcpyAsync(table.data(), parts.data(), parts.size() * sizeof(std::byte*),
                              cudaMemcpyHostToDevice, ctx.stream()),
              "cudaMemcpyAsync", "allocate_window");
      });
    return w;
  }

 private:
  std::size_t bytes_ = 0;
  std::vector<buffer<std::byte>> parts_;
  std::vector<buffer<std::byte*>> tables_;
};

/// Tiers 1 and 2 for ranks of one process, which all are called at once: arguments have an entry
/// per rank. One copy between devices for each pair of ranks that has bytes for each other.
template <class Group>
class local_collectives {
 public:
  using sources = std::span<void const* const>;
  using targets = std::span<void* const>;

  /// Block s of out[p] becomes block p of in[s]; blocks have `bytes` bytes.
  void all_to_all(sources in, targets out, std::size_t bytes) {
    copy("all_to_all", in, out, [=](std::size_t s, std::size_t p) {
      return block{p * bytes, s * bytes, bytes};
    });
  }
  /// Block s of every out[p] becomes in[s].
  void all_gather(sources in, targets out, std::size_t bytes) {
    copy("all_gather", in, out, [=](std::size_t s, std::size_t) {
      return block{0, s * bytes, bytes};
    });
  }
  /// As communicator::all_to_all_v of all ranks: entry s * size() + p of `counts` and `from` is
  /// what rank s sends to rank p, entry p * size() + s of `out_counts` and `to` what p gets from s.
  void all_to_all_v(sources in, byte_counts counts, byte_counts from, targets out,
                    byte_counts out_counts, byte_counts to) {
    auto const n = static_cast<std::size_t>(group().size());
    for (byte_counts const& table : {counts, from, out_counts, to})
      expar::detail::expects(table.size() == n * n, "all_to_all_v: a table has ", table.size(),
                             " entries; it has one for each of ", n, " x ", n, " pairs of ranks");
    for (std::size_t s = 0; s < n; ++s)
      for (std::size_t p = 0; p < n; ++p)
        expar::detail::expects(counts[s * n + p] == out_counts[p * n + s], "all_to_all_v: rank ", s,
                               " sends ", counts[s * n + p], " bytes to rank ", p,
                               ", which expects ", out_counts[p * n + s]);
    copy("all_to_all_v", in, out, [=](std::size_t s, std::size_t p) {
      return block{from[s * n + p], to[p * n + s], counts[s * n + p]};
    });
  }
  void barrier() { group().exchange_phase(); }

 private:
  struct block {
    std::size_t from, to, bytes;
  };

  Group& group() { return static_cast<Group&>(*this); }

  template <class Block>
  void copy(char const* place, sources in, targets out, Block block_of) {
    auto const n = static_cast<std::size_t>(group().size());
    expar::detail::expects(in.size() == n && out.size() == n, place, ": in and out have ",
                           in.size(), " and ", out.size(), " entries; they have one for each of ",
                           n, " ranks");
    group().exchange_phase();
    for (std::size_t p = 0; p < n; ++p)
      group().on(static_cast<int>(p), [&](context const& ctx) {
        for (std::size_t s = 0; s < n; ++s) {
          block const b = block_of(s, p);
          if (b.bytes == 0) continue;
          check(cudaMemcpyAsync(static_cast<std::byte*>(out[p]) + b.to,
                                static_cast<std::byte const*>(in[s]) + b.from, b.bytes,
                                cudaMemcpyDefault, ctx.stream()),
                "cudaMemcpyAsync", place);
        }
      });
    group().exchange_phase();
  }
};

}  // namespace expar::inline v0::gpu::detail
