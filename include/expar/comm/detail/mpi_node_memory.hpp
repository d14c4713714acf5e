// SPDX-License-Identifier: Apache-2.0
#pragma once

#if !defined(__linux__)
#error "expar/comm/mpi_node.hpp needs Linux, where a process opens the memory of another by /proc"
#endif

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <utility>

namespace expar::inline v0::detail {

/// Where another process of this machine finds a file without a name.
struct node_address {
  int process = 0, descriptor = -1;
  std::uint64_t inode = 0;
};

/// Memory that processes share: a file that has no name, so that nothing stays behind whoever ends
/// when. Functions that may fail return an error number, 0 for none.
class node_file {
 public:
  node_file() = default;
  node_file(node_file&& other) noexcept : at_(std::exchange(other.at_, -1)) {}
  node_file& operator=(node_file&& other) noexcept {
    std::swap(at_, other.at_);
    return *this;
  }
  ~node_file() {
    if (at_ >= 0) ::close(at_);
  }

  int make() {
    at_ = ::memfd_create("expar", MFD_CLOEXEC);
    return at_ < 0 ? errno : 0;
  }
  /// The file of another process. A descriptor that means another file by now is an error.
  int open(node_address const& a) {
    char path[64];
    std::snprintf(path, sizeof path, "/proc/%d/fd/%d", a.process, a.descriptor);
    at_ = ::open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (at_ < 0) return errno;
    if (inode() == a.inode) return 0;
    *this = node_file();
    return ESTALE;
  }
  node_address address() const { return {static_cast<int>(::getpid()), at_, inode()}; }
  int descriptor() const noexcept { return at_; }

  /// Gives [offset, offset + bytes) memory, on the part of the machine that calls.
  int extend(std::size_t offset, std::size_t bytes) const {
    int error = 0;
    do {
      error = ::posix_fallocate(at_, static_cast<off_t>(offset), static_cast<off_t>(bytes));
    } while (error == EINTR);
    return error;
  }

  /// Says that this process has come for place `i`, as long as it has this file.
  int enter(int i) const {
    auto mine = lock_of(i);
    return ::fcntl(at_, F_OFD_SETLK, &mine) == 0 ? 0 : errno;
  }
  /// Whether that one has ended or given its file back.
  bool has_left(int i) const {
    auto theirs = lock_of(i);
    return ::fcntl(at_, F_OFD_GETLK, &theirs) == 0 && theirs.l_type == F_UNLCK;
  }

 private:
  static struct flock lock_of(int i) {
    struct flock l {};
    l.l_type = F_WRLCK, l.l_whence = SEEK_SET, l.l_start = i, l.l_len = 1;
    return l;
  }
  std::uint64_t inode() const {
    struct stat s {};
    return ::fstat(at_, &s) == 0 && S_ISREG(s.st_mode) ? static_cast<std::uint64_t>(s.st_ino) : 0;
  }

  int at_ = -1;
};

inline std::size_t node_pages(std::size_t bytes) {
  auto const page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  return (bytes + page - 1) / page * page;
}

/// A part of a file in the addresses of this process. The system keeps the memory as long as any
/// process has it there.
class node_mapping {
 public:
  node_mapping() = default;
  node_mapping(node_mapping&& other) noexcept
      : begin_(std::exchange(other.begin_, nullptr)), bytes_(other.bytes_) {}
  node_mapping& operator=(node_mapping&& other) noexcept {
    std::swap(begin_, other.begin_), std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~node_mapping() {
    if (begin_ != nullptr) ::munmap(begin_, bytes_);
  }

  /// `offset` is a number of whole pages, and there are bytes.
  int map(node_file const& file, std::size_t offset, std::size_t bytes) {
    void* const at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.descriptor(),
                            static_cast<off_t>(offset));
    if (at == MAP_FAILED) return errno;
    begin_ = static_cast<std::byte*>(at), bytes_ = bytes;
    return 0;
  }
  std::byte* begin() const noexcept { return begin_; }
  template <class T>
  T* at(std::size_t offset) const noexcept {
    return reinterpret_cast<T*>(begin_ + offset);
  }

 private:
  std::byte* begin_ = nullptr;
  std::size_t bytes_ = 0;
};

/// The file of a group of ranks, of which one makes it and the others open it: who they are, and
/// room that any of them can take for all.
class node_memory {
 public:
  using counter = std::atomic<std::uint64_t>;
  static_assert(counter::is_always_lock_free);

  int make(int ranks, std::uint64_t token) {
    if (int const error = file_.make()) return error;
    std::size_t const bytes = size_of(ranks);
    if (int const error = file_.extend(0, bytes)) return error;
    if (int const error = map_.map(file_, 0, bytes)) return error;
    head().token = token;
    head().end.store(bytes, std::memory_order_relaxed);
    return 0;
  }
  int open(node_address const& of_maker, int ranks, std::uint64_t token) {
    if (int const error = file_.open(of_maker)) return error;
    struct stat s {};
    if (::fstat(file_.descriptor(), &s) != 0) return errno;
    if (static_cast<std::size_t>(s.st_size) < size_of(ranks)) return ESTALE;
    if (int const error = map_.map(file_, 0, size_of(ranks))) return error;
    return head().token == token ? 0 : ESTALE;
  }
  /// Before any other rank asks for it.
  int enter(int rank) {
    *map_.at<int>(process_of(rank)) = static_cast<int>(::getpid());
    return file_.enter(rank);
  }

  node_file const& file() const noexcept { return file_; }
  int process(int rank) const noexcept { return *map_.at<int>(process_of(rank)); }
  bool has_left(int rank) const { return file_.has_left(rank); }

  /// Room of zeros for all, at `offset`.
  int take(std::size_t bytes, std::size_t& offset) const {
    bytes = node_pages(bytes);
    offset = head().end.fetch_add(bytes, std::memory_order_relaxed);
    return file_.extend(offset + bytes - 1, 1);  // what is never touched takes no memory
  }

 private:
  struct header {
    std::uint64_t token;
    counter end;
  };
  header& head() const noexcept { return *map_.at<header>(0); }
  static std::size_t process_of(int rank) {
    return sizeof(header) + static_cast<std::size_t>(rank) * sizeof(int);
  }
  static std::size_t size_of(int ranks) { return node_pages(process_of(ranks)); }

  node_file file_;
  node_mapping map_;
};

}  // namespace expar::inline v0::detail
