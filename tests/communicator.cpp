// SPDX-License-Identifier: Apache-2.0
#include <expar/communicator.hpp>

#include <expar/comm/self.hpp>
#include <expar/comm/thread.hpp>

#include "support/catch.hpp"

namespace {

using expar::byte_counts;
using expar::host_context;

// The least that tier 0 asks, and each way to miss it.
struct numbered {
  int rank() const noexcept { return 0; }
  int size() const noexcept { return 1; }
};
struct may_throw {
  int rank() const { return 0; }
  int size() const { return 1; }
};
struct long_ranks {
  long rank() const noexcept { return 0; }
  long size() const noexcept { return 1; }
};
struct no_size {
  int rank() const noexcept { return 0; }
};

struct variable : numbered {
  void all_to_all_v(host_context const&, void const*, byte_counts, byte_counts, void*, byte_counts,
                    byte_counts) {}
};
struct context_last : numbered {
  void all_to_all_v(void const*, byte_counts, byte_counts, void*, byte_counts, byte_counts,
                    host_context const&) {}
};
struct int_counts : numbered {
  void all_to_all_v(host_context const&, void const*, int const*, int const*, void*, int const*,
                    int const*) {}
};
struct const_output : numbered {
  void all_to_all_v(host_context const&, void const*, byte_counts, byte_counts, int*, byte_counts,
                    byte_counts) {}
};

struct fixed : numbered {
  void all_to_all(host_context const&, void const*, void*, std::size_t) {}
  void all_gather(host_context const&, void const*, void*, std::size_t) {}
  void barrier(host_context const&) {}
};
struct fixed_without_barrier : numbered {
  void all_to_all(host_context const&, void const*, void*, std::size_t) {}
  void all_gather(host_context const&, void const*, void*, std::size_t) {}
};

struct stream {};
struct on_streams : numbered {
  static constexpr expar::communicator_traits traits{.space = expar::memory_space::device,
                                                     .concurrent_ranks = false};
  void all_to_all_v(stream const&, void const*, byte_counts, byte_counts, void*, byte_counts,
                    byte_counts) {}
};

struct window {
  struct view_type {
    int rank() const { return 0; }
    int size() const { return 1; }
    void* peer(int, std::size_t) const { return nullptr; }
  };
  std::size_t size_bytes() const { return 0; }
  view_type view() const { return {}; }
};
struct with_windows : variable {
  window allocate_window(std::size_t) { return {}; }
  void exchange_phase(host_context const&) {}
};
struct without_phases : variable {
  window allocate_window(std::size_t) { return {}; }
};
struct heavy_view : window {
  struct view_type : window::view_type {
    ~view_type() {}
  };
  view_type view() const { return {}; }
};
struct with_heavy_views : variable {
  heavy_view allocate_window(std::size_t) { return {}; }
  void exchange_phase(host_context const&) {}
};

}  // namespace

TEST_CASE("communicator: tier 0") {
  STATIC_REQUIRE(expar::communicator<numbered>);
  STATIC_REQUIRE(expar::communicator<numbered const&>);
  STATIC_REQUIRE_FALSE(expar::communicator<may_throw>);
  STATIC_REQUIRE_FALSE(expar::communicator<long_ranks>);
  STATIC_REQUIRE_FALSE(expar::communicator<no_size>);
  STATIC_REQUIRE_FALSE(expar::communicator<int>);
}

TEST_CASE("communicator: tier 1 needs all three, or tier 2") {
  STATIC_REQUIRE(expar::collective_communicator<fixed>);
  STATIC_REQUIRE(expar::collective_communicator<variable>);
  STATIC_REQUIRE_FALSE(expar::collective_communicator<fixed_without_barrier>);
  STATIC_REQUIRE_FALSE(expar::collective_communicator<numbered>);
}

TEST_CASE("communicator: tier 2") {
  STATIC_REQUIRE(expar::variable_communicator<variable>);
  STATIC_REQUIRE_FALSE(expar::variable_communicator<fixed>);
  STATIC_REQUIRE_FALSE(expar::variable_communicator<context_last>);
  STATIC_REQUIRE_FALSE(expar::variable_communicator<int_counts>);
  STATIC_REQUIRE_FALSE(expar::variable_communicator<const_output>);
}

TEST_CASE("communicator: tier 3") {
  STATIC_REQUIRE(expar::window_communicator<with_windows>);
  STATIC_REQUIRE_FALSE(expar::window_communicator<variable>);
  STATIC_REQUIRE_FALSE(expar::window_communicator<without_phases>);
  STATIC_REQUIRE_FALSE(expar::window_communicator<with_heavy_views>);
}

TEST_CASE("communicator: the context chooses the operation") {
  STATIC_REQUIRE(expar::variable_communicator<on_streams, stream>);
  STATIC_REQUIRE_FALSE(expar::variable_communicator<on_streams, host_context>);
  STATIC_REQUIRE_FALSE(expar::variable_communicator<variable, stream>);
}

TEST_CASE("communicator: traits are stated or have defaults") {
  STATIC_REQUIRE(expar::traits_of<numbered>().space == expar::memory_space::host);
  STATIC_REQUIRE(expar::traits_of<numbered>().concurrent_ranks);
  STATIC_REQUIRE_FALSE(expar::traits_of<numbered>().checks_sizes);
  STATIC_REQUIRE(expar::traits_of<on_streams>().space == expar::memory_space::device);
  STATIC_REQUIRE_FALSE(expar::traits_of<on_streams const&>().concurrent_ranks);
}

TEST_CASE("communicator: what comes with the library") {
  STATIC_REQUIRE(expar::variable_communicator<expar::self_communicator>);
  STATIC_REQUIRE(expar::variable_communicator<expar::self_communicator const>);
  STATIC_REQUIRE_FALSE(expar::window_communicator<expar::self_communicator>);
  STATIC_REQUIRE(expar::window_communicator<expar::thread_communicator>);
  STATIC_REQUIRE(expar::window_communicator<expar::thread_communicator const>);
}
