// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/wire.hpp>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include <expar/comm/thread.hpp>
#include <expar/exchange/hops.hpp>
#include <expar/expert_parallel.hpp>

#include "support/catch.hpp"
#include "support/counting.hpp"
#include "support/random.hpp"
#include "support/thrown_by.hpp"

using expar::bfloat16;
using expar::float8_e4m3;
using expar::index_t;
using expar::make_view;

namespace {

template <class T>
T rounded(double x) {
  return expar::narrow<T>(static_cast<expar::accumulator_t<T>>(x));
}
template <class T>
double value(T x) {
  return static_cast<double>(expar::widen(x));
}

template <class Format, class T>
std::vector<T> through(Format const& format, std::vector<T> const& row) {
  auto const n = std::ssize(row);
  std::vector<std::byte> packed(static_cast<std::size_t>(format.bytes(n)) + 1, std::byte{0x5a});
  std::vector<T> back(row.size());
  format.pack(row.data(), packed.data(), n);
  CHECK(packed.back() == std::byte{0x5a});
  format.unpack(static_cast<std::byte const*>(packed.data()), back.data(), n);
  return back;
}

struct route_list {
  expar::tensor_view<std::int32_t const, 2> ids;
  expar::tensor_view<float const, 2> weights;
};

/// Tokens of a rank, and where they go.
template <class T>
struct tokens_of {
  int n, hidden, k, experts;
  std::vector<T> x;
  std::vector<std::int32_t> ids;
  std::vector<float> weights;

  tokens_of(std::uint64_t seed, int rank, int columns, int top_k, int all)
      : hidden(columns), k(top_k), experts(all) {
    expar_test::random rng(seed * 100 + static_cast<std::uint64_t>(rank));
    n = rank == 2 ? 0 : static_cast<int>(rng.integer(1, 9));
    for (int i = 0; i < n * hidden; ++i) x.push_back(rounded<T>(rng.normal()));
    for (int i = 0; i < n * k; ++i) {
      ids.push_back(static_cast<std::int32_t>(rng.integer(-1, experts - 1)));
      weights.push_back(static_cast<float>(rng.normal()));
    }
  }
  route_list routes() const {
    return {make_view(ids.data(), n, k), make_view(weights.data(), n, k)};
  }
  auto rows() const { return make_view(x.data(), n, hidden); }
};

/// f(transport), over each.
template <class F>
void over_all(expar::thread_communicator& comm, F f) {
  expar::messages by_messages(comm);
  f(by_messages);
  expar::windows by_windows(comm);
  f(by_windows);
  expar::hops by_hops(comm, expar::chain::once_per_node(expar::topology::blocks(comm.size(), 2)));
  f(by_hops);
}

/// Whether the rows that come are what the format makes of the tokens, which plain rows are.
template <class T, class Format, class Site>
bool travels(expar::thread_communicator& comm, Format const& format, std::uint64_t seed,
             Site site) {
  bool good = true;
  tokens_of<T> const t(seed, comm.rank(), 133, 3, 7);
  over_all(comm, [&](auto& transport) {
    expar::host_context const ctx(2);
    expar::expert_parallel moe(transport, {.experts = 7, .top_k = 3, .hidden = 133},
                               expar::ragged{2}, site);
    auto plain = moe.template make_batch<T>(), packed = moe.template make_batch<T>();
    moe.dispatch(ctx, t.rows(), t.routes(), plain);
    moe.prepare(ctx, t.routes(), packed);
    for (int again = 0; again < 2; ++again) {
      moe.dispatch(ctx, t.rows(), packed, format);
      good = good && packed.row_count() == plain.row_count();
      for (index_t i = 0; i < plain.row_count(); ++i) {
        std::vector<T> row(plain.rows().row(i), plain.rows().row(i) + 133);
        auto const wanted = through(format, row);
        good = good && std::memcmp(wanted.data(), packed.rows().row(i), 133 * sizeof(T)) == 0;
      }
      auto const w = packed.row_weights(), as = plain.row_weights();
      good =
          good && w.extents[0] == as.extents[0] &&
          (w.extents[0] == 0 ||
           std::memcmp(w.data, as.data, static_cast<std::size_t>(w.size()) * sizeof(float)) == 0);
    }
    // The batch goes on as any other: y, and the way home and back.
    std::vector<T> out(t.x.size()), plain_out(t.x.size()), d_x(t.x.size());
    moe.combine(ctx, packed, plain.rows(), make_view(out.data(), t.n, 133));
    moe.combine(ctx, plain, plain.rows(), make_view(plain_out.data(), t.n, 133));
    good = good &&
           (out.empty() || std::memcmp(out.data(), plain_out.data(), out.size() * sizeof(T)) == 0);
  });
  return good;
}

}  // namespace

TEST_CASE("rows that travel in fewer bytes are what the format makes of them, over any transport") {
  for (int const ranks : {1, 2, 3, 5})
    for (std::uint64_t seed = 0; seed < 4; ++seed) {
      std::vector<int> good(static_cast<std::size_t>(ranks));
      expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
        expar::weights_at_decode const at_decode;
        expar::weights_per_row const per_row;
        good[static_cast<std::size_t>(comm.rank())] =
            travels<bfloat16>(comm, expar::wire<float8_e4m3>{}, seed, at_decode) &&
            travels<bfloat16>(comm, expar::wire<float8_e4m3>{}, seed, per_row) &&
            travels<float>(comm, expar::wire<float8_e4m3>{}, seed, at_decode) &&
            travels<float>(comm, expar::wire<bfloat16>{}, seed, per_row) &&
            travels<float>(comm, expar::wire<expar::half>{}, seed, at_decode);
      });
      INFO("ranks " << ranks << ", seed " << seed);
      for (int const g : good) REQUIRE(g == 1);
    }
}

TEST_CASE("an element that travels as E4M3 is within its bound") {
  expar_test::random rng(3);
  for (int drawn = 0; drawn < 300; ++drawn) {
    auto const n = static_cast<std::size_t>(rng.integer(1, 400));
    double const size = std::exp2(static_cast<double>(rng.integer(-90, 90)));
    std::vector<float> row;
    for (std::size_t c = 0; c < n; ++c)
      row.push_back(rng.chance(.1) ? 0.f
                                   : static_cast<float>(rng.normal() * size *
                                                        std::exp2(-double(rng.integer(0, 12)))));
    auto const back = through(expar::wire<float8_e4m3>{}, row);
    for (std::size_t c = 0; c < n; ++c) {
      double most = 0;
      for (std::size_t b = c / 128 * 128; b < std::min(n, c / 128 * 128 + 128); ++b)
        most = std::max(most, std::abs(value(row[b])));
      double const x = value(row[c]), scale = most / 448;
      REQUIRE(std::abs(value(back[c]) - x) <=
              std::max(std::abs(x) / 16, scale / 1024) * (1 + 1e-6) + 1e-44);
    }
  }
}

TEST_CASE("what has no finite scale comes back as NaN, and zeros as zeros") {
  float const inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  std::vector<float> row(200, 1.f);
  row[3] = nan, row[130] = inf;
  auto const back = through(expar::wire<float8_e4m3>{}, row);
  CHECK(std::isnan(back[3]));
  CHECK(back[4] > .9f);
  CHECK(std::isnan(back[130]));
  for (float const x : through(expar::wire<float8_e4m3>{}, std::vector<float>(130, 0.f)))
    CHECK(x <= 0.f);
  CHECK(through(expar::wire<float8_e4m3>{}, std::vector<float>()).empty());
}

TEST_CASE("E4M3 on the wire sends at most 0.53 of the bytes of bf16") {
  for (bool const by_hops : {false, true}) {
    std::vector<index_t> plain(4), packed(4);
    expar::run_ranks(4, [&](expar::thread_communicator& threads) {
      expar_test::counting<true> comm{threads};
      auto const me = static_cast<std::size_t>(comm.rank());
      expar::host_context const ctx;
      constexpr int n = 64, hidden = 2048;
      std::vector<bfloat16> x(n * hidden, expar::narrow<bfloat16>(1.f));
      std::vector<std::int32_t> ids;
      for (int i = 0; i < n * 4; ++i) ids.push_back(i * 5 % 16);
      std::vector<float> const w(ids.size(), 1.f);
      auto const on = [&](auto&& transport) {
        expar::expert_parallel moe(transport, {.experts = 16, .top_k = 4, .hidden = hidden});
        auto batch = moe.template make_batch<bfloat16>();
        moe.prepare(ctx, route_list{make_view(ids.data(), n, 4), make_view(w.data(), n, 4)}, batch);
        auto const rows = make_view(x.data(), n, hidden);
        comm.restart();
        moe.dispatch(ctx, rows, batch);
        plain[me] = comm.sent_to_others();
        comm.restart();
        moe.dispatch(ctx, rows, batch, expar::wire<float8_e4m3>{});
        packed[me] = comm.sent_to_others();
      };
      if (by_hops)
        on(expar::hops(comm, expar::chain::once_per_node(expar::topology::blocks(4, 2))));
      else
        on(expar::messages(comm));
    });
    for (std::size_t r = 0; r < 4; ++r) {
      REQUIRE(plain[r] > 0);
      REQUIRE(static_cast<double>(packed[r]) <= .53 * static_cast<double>(plain[r]));
    }
  }
}

TEST_CASE("what is carried beside tokens stands by their rows, over any transport") {
  struct note {
    std::int64_t token;
    char rank;
  };
  for (int const ranks : {1, 2, 3, 5})
    for (std::uint64_t seed = 0; seed < 4; ++seed) {
      std::vector<int> good(static_cast<std::size_t>(ranks), 1);
      expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
        tokens_of<float> const t(seed, comm.rank(), 8, 2, 5);
        std::vector<note> notes(static_cast<std::size_t>(2 * t.n));
        for (int i = 0; i < t.n; ++i)
          notes[static_cast<std::size_t>(2 * i)] = {i, static_cast<char>(comm.rank())},
                                             notes[static_cast<std::size_t>(2 * i + 1)] = {-i, 'x'};
        over_all(comm, [&](auto& transport) {
          expar::host_context const ctx;
          expar::expert_parallel moe(transport, {.experts = 5, .top_k = 2, .hidden = 8});
          auto batch = moe.template make_batch<float>();
          moe.dispatch(ctx, t.rows(), t.routes(), batch);
          std::vector<note> came(static_cast<std::size_t>(2 * batch.row_count()));
          moe.carry(ctx, make_view(notes.data(), t.n, 2), batch,
                    make_view(came.data(), batch.row_count(), 2));
          bool all = true;
          for (int l = 0; l < batch.local_slots(); ++l)
            for (int r = 0; r < ranks; ++r) {
              tokens_of<float> const source(seed, r, 8, 2, 5);
              index_t row = batch.first_row_from(r, l);
              for (int i = 0; i < 2 * source.n; ++i) {
                if (source.ids[static_cast<std::size_t>(i)] != batch.expert_of(l)) continue;
                auto const at = static_cast<std::size_t>(2 * row++);
                all = all && came[at].token == i / 2 && came[at].rank == r &&
                      came[at + 1].token == -(i / 2) && came[at + 1].rank == 'x';
              }
            }
          if (!all) good[static_cast<std::size_t>(comm.rank())] = 0;
        });
      });
      INFO("ranks " << ranks << ", seed " << seed);
      for (int const g : good) REQUIRE(g == 1);
    }
}

TEST_CASE("carry: all ranks pass rows of as many bytes, and the caller's tensors fit the batch") {
  std::vector<std::vector<std::string>> said(2);
  expar::run_ranks(2, [&](expar::thread_communicator& comm) {
    tokens_of<float> const t(1, comm.rank(), 8, 2, 5);
    over_all(comm, [&](auto& transport) {
      expar::host_context const ctx;
      expar::expert_parallel moe(transport, {.experts = 5, .top_k = 2, .hidden = 8});
      auto batch = moe.template make_batch<float>();
      auto& mine = said[static_cast<std::size_t>(comm.rank())];
      std::vector<int> what(static_cast<std::size_t>(3 * t.n), 1), to(300);
      auto const carry = [&](index_t tokens, index_t columns, index_t rows) {
        mine.push_back(expar_test::thrown_by([&] {
          moe.carry(ctx, make_view(what.data(), tokens, columns), batch,
                    make_view(to.data(), rows, columns));
        }));
      };
      carry(t.n, 1, 0);
      moe.prepare(ctx, t.routes(), batch);
      carry(t.n, 1 + comm.rank(), batch.row_count());
      carry(t.n - (comm.rank() == 1), 2, batch.row_count());
      carry(t.n, 2, batch.row_count() + (comm.rank() == 0));
      carry(t.n, 2, batch.row_count());
    });
  });
  CHECK(said[0] == said[1]);
  REQUIRE(said[0].size() == 15);
  for (std::size_t i = 0; i < 15; i += 5) {
    INFO(i);
    CHECK(said[0][i].find("expar: carry: the batch has no routes; dispatch or prepare it first") ==
          0);
    CHECK(said[0][i + 1] == "expar: rank 0 carries rows of 4 bytes while rank 1 carries rows of 8");
    CHECK(said[0][i + 2].find("expar: carry: what has ") == 0);
    CHECK(said[0][i + 3].find("expar: carry: to has ") == 0);
    CHECK(said[0][i + 4] == "nothing was thrown");
  }
}
