// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/linear.hpp>

#include <vector>

#include <expar/comm/thread.hpp>

#include "../support/catch.hpp"

namespace {

constexpr int ranks = 3, experts = 4, columns = 3;

// Rank r sends (r + e) % 3 rows to expert e; row i of them holds 100 r + 10 e + i.
expar::index_t rows_for(int rank, int e) {
  return (rank + e) % 3;
}

template <bool Equal>
std::string there_and_back(expar::thread_communicator& comm) {
  expar::host_context const ctx;
  auto* const memory = std::pmr::get_default_resource();
  expar::detail::arrivals map(memory);
  map.begin({experts, ranks}, comm.rank());
  map.capacity = Equal ? 2 : -1;
  for (int e = 0; e < experts; ++e) map.sent[e] = rows_for(comm.rank(), e);
  int const first = map.place.first(comm.rank());
  for (int s = 0; s < ranks; ++s)
    for (int l = 0; l < map.locals(); ++l)
      map.arrived[s * map.locals() + l] = rows_for(s, first + l);
  map.lay_out(1);
  std::vector<float> rows(static_cast<std::size_t>(map.rows()) * columns, -1);
  std::vector<double> scalars(static_cast<std::size_t>(map.rows()), -1);
  auto const view = expar::make_view(rows.data(), map.rows(), expar::index_t{columns});

  using exchange = expar::detail::linear_exchange;
  exchange engine(memory);
  constexpr auto row_bytes = expar::index_t{columns * sizeof(float)};
  engine.pack_for_experts(map, row_bytes, expar::index_t{sizeof(double)}, [&](auto message) {
    for (int e = 0; e < experts; ++e)
      for (int i = 0; i < rows_for(comm.rank(), e); ++i) {
        double const x = 100 * comm.rank() + 10 * e + i;
        auto* const row =
            reinterpret_cast<float*>(message.bytes + message.row_start[e]) + i * columns;
        for (int c = 0; c < columns; ++c) row[c] = static_cast<float>(x);
        reinterpret_cast<double*>(message.bytes + message.scalar_start[e])[i] = x;
      }
  });
  engine.run<Equal>(ctx, comm);
  engine.unpack_at_experts(ctx, map, view, exchange::column<double>{scalars.data(), true});
  for (int s = 0; s < ranks; ++s)
    for (int l = 0; l < map.locals(); ++l)
      for (int i = 0; i < map.arrived_rows()(s * map.locals() + l); ++i) {
        auto const row = map.first_row[s * map.locals() + l] + i;
        bool const real = i < rows_for(s, first + l);
        double const wanted = real ? 100 * s + 10 * (first + l) + i : 0;
        if (view(row, 2) != static_cast<float>(wanted) ||
            scalars[static_cast<std::size_t>(row)] != wanted)
          return "to_experts";
      }

  expar::tensor_view<float const, 2> const back = view;
  engine.pack_for_sources(ctx, map, &back, exchange::column<double const>{scalars.data(), true});
  engine.run<Equal>(ctx, comm);
  auto const home = engine.at_sources();
  for (int e = 0; e < experts; ++e)
    for (int i = 0; i < rows_for(comm.rank(), e); ++i) {
      auto const* const row =
          reinterpret_cast<float const*>(home.bytes + home.row_start[e]) + i * columns;
      auto const* const scalar =
          reinterpret_cast<double const*>(home.bytes + home.scalar_start[e]) + i;
      double const wanted = 100 * comm.rank() + 10 * e + i;
      if (row[1] != static_cast<float>(wanted) || *scalar != wanted) return "to_sources";
    }
  return "";
}

}  // namespace

TEST_CASE("rows and scalars travel to their experts and back") {
  std::vector<std::string> variable(ranks), fixed(ranks);
  expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
    variable[static_cast<std::size_t>(comm.rank())] = there_and_back<false>(comm);
    fixed[static_cast<std::size_t>(comm.rank())] = there_and_back<true>(comm);
  });
  REQUIRE(variable == std::vector<std::string>(ranks));
  REQUIRE(fixed == std::vector<std::string>(ranks));
}
