// SPDX-License-Identifier: Apache-2.0
#include <expar/detail/buffer.hpp>

#include <cstdint>
#include <memory_resource>
#include <new>
#include <utility>

#include "../support/catch.hpp"

namespace {

using expar::detail::buffer;

// Counts what it gives, and can run dry.
class counting_resource : public std::pmr::memory_resource {
 public:
  int allocations = 0, live = 0;
  std::size_t bytes = 0, limit = std::size_t{1} << 30;

 private:
  void* do_allocate(std::size_t n, std::size_t alignment) override {
    if (bytes + n > limit) throw std::bad_alloc();
    ++allocations, ++live, bytes += n;
    return std::pmr::new_delete_resource()->allocate(n, alignment);
  }
  void do_deallocate(void* p, std::size_t n, std::size_t alignment) override {
    --live, bytes -= n;
    std::pmr::new_delete_resource()->deallocate(p, n, alignment);
  }
  bool do_is_equal(memory_resource const& other) const noexcept override { return this == &other; }
};

}  // namespace

TEST_CASE("buffer: it only grows") {
  counting_resource memory;
  {
    buffer<int> b(&memory);
    CHECK(b.data() == nullptr);
    CHECK(b.size() == 0);
    int* const first = b.resize(std::size_t{10});
    CHECK(reinterpret_cast<std::uintptr_t>(first) % 64 == 0);
    first[9] = 7;
    CHECK(b.resize(std::ptrdiff_t{3}) == first);
    CHECK(b.size() == 3);
    CHECK(b.resize(std::size_t{10}) == first);
    CHECK(b[9] == 7);
    CHECK(memory.allocations == 1);
    b.resize(std::size_t{11});
    CHECK(memory.allocations == 2);
    CHECK(memory.live == 1);
    b.assign(4, 5);
    int sum = 0;
    for (int x : b) sum += x;
    CHECK(sum == 20);
    CHECK(b.resource() == &memory);
  }
  CHECK(memory.live == 0);
  CHECK(memory.bytes == 0);
}

TEST_CASE("buffer: it moves") {
  counting_resource memory, other;
  {
    buffer<double> a(&memory), b(&other);
    a.assign(3, 1.5);
    b.assign(2, 2.5);
    double const* const place = a.data();
    buffer<double> c(std::move(a));
    CHECK(c.data() == place);
    CHECK(a.data() == nullptr);
    CHECK(a.size() == 0);
    b = std::move(c);
    CHECK(b.data() == place);
    CHECK(b.size() == 3);
    CHECK(b.resource() == &memory);
    buffer<double>& same = b;
    b = std::move(same);
    CHECK(b.data() == place);
    CHECK(b[2] == 1.5);
    a.assign(1, 0.0);
  }
  CHECK(memory.live == 0);
  CHECK(other.live == 0);
}

TEST_CASE("buffer: memory that runs out leaves it empty and usable") {
  counting_resource memory;
  memory.limit = 1000;
  {
    buffer<char> b(&memory);
    b.resize(std::size_t{100});
    REQUIRE_THROWS_AS(b.resize(std::size_t{2000}), std::bad_alloc);
    CHECK(b.data() == nullptr);
    CHECK(b.size() == 0);
    CHECK(b.resize(std::size_t{500}) != nullptr);
    b.reserve(std::size_t{700});
    memory.limit = memory.bytes;
    CHECK(b.resize(std::size_t{700}) == b.data());
    b.clear();
    CHECK(b.size() == 0);
    CHECK(b.capacity() == 700);
    REQUIRE_THROWS_AS(buffer<double>(&memory).resize(std::size_t{1} << 61), std::bad_alloc);
  }
  CHECK(memory.bytes == 0);
}

TEST_CASE("buffer: what needs more alignment gets it") {
  struct alignas(128) wide {
    char bytes[128];
  };
  buffer<wide> b;
  CHECK(reinterpret_cast<std::uintptr_t>(b.resize(std::size_t{3})) % 128 == 0);
}
