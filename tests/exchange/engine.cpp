// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/engine.hpp>

#include <cstdint>
#include <type_traits>
#include <vector>

#include <expar/comm/self.hpp>
#include <expar/comm/thread.hpp>
#include <expar/expert_parallel.hpp>

#include "../support/catch.hpp"

using expar::ragged;
using expar::weights_at_decode;

namespace {

template <class From>
using engine_of = expar::detail::engine<From, ragged, weights_at_decode>;
template <class From>
using transport = typename engine_of<From>::transport;
using threads = expar::thread_communicator;
using self = expar::self_communicator;

}  // namespace

TEST_CASE("an engine takes windows where a communicator has them, and shares what it is given") {
  STATIC_REQUIRE(std::is_same_v<transport<threads>, expar::windows<threads>>);
  STATIC_REQUIRE(std::is_same_v<transport<self>, expar::messages<self>>);
  STATIC_REQUIRE(std::is_same_v<transport<expar::messages<threads>>, expar::messages<threads>&>);
  STATIC_REQUIRE(std::is_same_v<transport<expar::windows<threads>>, expar::windows<threads>&>);
}

TEST_CASE("the gradient of a weight beside a row has the type in which rows are summed") {
  STATIC_REQUIRE(std::is_same_v<expar::detail::row_scalar_t<expar::bfloat16, double>, float>);
  STATIC_REQUIRE(std::is_same_v<expar::detail::row_scalar_t<double, float>, double>);
  STATIC_REQUIRE(std::is_same_v<expar::detail::row_scalar_t<std::byte, float>, float>);
}

TEST_CASE("all ranks know an engine by one number, and another by another") {
  constexpr int ranks = 3;
  std::vector<std::uint64_t> first(ranks), second(ranks);
  expar::run_ranks(ranks, [&](threads& comm) {
    auto* const memory = std::pmr::get_default_resource();
    expar::expert_shape const shape{.experts = 5, .top_k = 2, .hidden = 3};
    engine_of<threads> a(comm, shape, {}, memory), b(comm, shape, {}, memory);
    first[static_cast<std::size_t>(comm.rank())] = a.id_;
    second[static_cast<std::size_t>(comm.rank())] = b.id_;
  });
  CHECK(first == std::vector<std::uint64_t>(ranks, first[0]));
  CHECK(second == std::vector<std::uint64_t>(ranks, second[0]));
  CHECK(first[0] != second[0]);
}
