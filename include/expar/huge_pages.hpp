// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory_resource>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace expar::inline v0 {

/// Memory for a context, a transport or a batch whose buffers are large: pages of 2 MiB for all
/// that is as large, which saves a processor the way to the page of every row. On Linux, where the
/// system gives them on demand (/sys/kernel/mm/transparent_hugepage/enabled is `madvise` or
/// `always`); a system that does not gives ordinary ones. What is smaller comes as it is from
/// `upstream`, which outlives this resource as this one outlives its users.
///
///   expar::huge_pages memory;
///   expar::host_context ctx(threads, &memory);
class huge_pages : public std::pmr::memory_resource {
 public:
  static constexpr std::size_t page_bytes = std::size_t{2} << 20;

  explicit huge_pages(std::pmr::memory_resource* upstream = std::pmr::get_default_resource())
      : upstream_(upstream) {}

 private:
  static bool is_huge(std::size_t bytes) { return bytes >= page_bytes; }
  static std::size_t whole(std::size_t bytes) {
    std::size_t const over = bytes % page_bytes;
    return over == 0 || bytes > SIZE_MAX - page_bytes ? bytes : bytes + (page_bytes - over);
  }
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    if (!is_huge(bytes)) return upstream_->allocate(bytes, alignment);
    std::size_t const apart = alignment > page_bytes ? alignment : page_bytes;
    void* const memory = upstream_->allocate(whole(bytes), apart);
#if defined(MADV_HUGEPAGE)
    madvise(memory, whole(bytes), MADV_HUGEPAGE);  // where it fails, pages are ordinary
#endif
    return memory;
  }
  void do_deallocate(void* memory, std::size_t bytes, std::size_t alignment) override {
    if (!is_huge(bytes)) return upstream_->deallocate(memory, bytes, alignment);
    upstream_->deallocate(memory, whole(bytes), alignment > page_bytes ? alignment : page_bytes);
  }
  bool do_is_equal(std::pmr::memory_resource const& other) const noexcept override {
    return this == &other;
  }

  std::pmr::memory_resource* upstream_;
};

}  // namespace expar::inline v0
