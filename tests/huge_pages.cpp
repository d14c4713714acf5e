// SPDX-License-Identifier: Apache-2.0
#include <expar/huge_pages.hpp>

#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include <expar/context.hpp>

#include "support/catch.hpp"

namespace {

struct call {
  std::size_t bytes, alignment;
  friend bool operator==(call const&, call const&) = default;
};
/// Notes what it gives and gets back.
class noted : public std::pmr::memory_resource {
 public:
  std::vector<call> given, taken;

 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    given.push_back({bytes, alignment});
    return std::pmr::new_delete_resource()->allocate(bytes, alignment);
  }
  void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
    taken.push_back({bytes, alignment});
    std::pmr::new_delete_resource()->deallocate(p, bytes, alignment);
  }
  bool do_is_equal(std::pmr::memory_resource const& other) const noexcept override {
    return this == &other;
  }
};

}  // namespace

TEST_CASE("huge_pages: what is as large as a page stands in whole pages") {
  constexpr std::size_t page = expar::huge_pages::page_bytes;
  noted upstream;
  {
    expar::huge_pages memory(&upstream);
    std::vector<call> const asked = {
        {64, 16}, {page - 1, 64}, {page, 8}, {page + 1, 8}, {3 * page, 2 * page}};
    for (auto const& [bytes, alignment] : asked) {
      auto* const p = static_cast<unsigned char*>(memory.allocate(bytes, alignment));
      CHECK(reinterpret_cast<std::uintptr_t>(p) % (bytes < page ? alignment : page) == 0);
      std::memset(p, 1, bytes);
      memory.deallocate(p, bytes, alignment);
    }
  }
  std::vector<call> const wanted = {
      {64, 16}, {page - 1, 64}, {page, page}, {2 * page, page}, {3 * page, 2 * page}};
  CHECK(upstream.given == wanted);
  CHECK(upstream.taken == wanted);
}

TEST_CASE("huge_pages: more than there is throws, and a context takes it") {
  expar::huge_pages memory;
  expar::huge_pages none(std::pmr::null_memory_resource());
  CHECK_THROWS_AS(none.allocate(1), std::bad_alloc);
  CHECK_THROWS_AS(none.allocate(expar::huge_pages::page_bytes), std::bad_alloc);
  CHECK(expar::host_context(1, &memory).memory() == &memory);
  CHECK(memory == memory);
  CHECK(memory != expar::huge_pages());
}
