// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include <expar/communicator.hpp>
#include <expar/context.hpp>
#include <expar/detail/argument_table.hpp>
#include <expar/detail/buffer.hpp>
#include <expar/detail/sizes.hpp>
#include <expar/error.hpp>
#include <expar/exchange/agreement.hpp>
#include <expar/exchange/collectives.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0 {

struct sum_counts_fn {
  template <class Comm, class Values>
  void operator()(host_context const& ctx, Comm&& comm, Values&& values) const {
    static_assert(collective_communicator<Comm>,
                  "expar: sum_counts needs a communicator with all_to_all, all_gather and barrier, "
                  "or with all_to_all_v");
    decltype(detail::as_output<1>(ctx, values)) v{};
    using T = detail::element_of<decltype(v)>;
    static_assert((std::is_integral_v<T> && sizeof(T) >= 4) || std::is_same_v<T, double>,
                  "expar: what is summed over ranks are integers of at least 32 bits, or double");
    constexpr index_t before = detail::numbers_of_word;
    index_t const ranks = comm.size();
    detail::buffer<std::uint64_t> sizes(ctx.memory()), own(ctx.memory()), all(ctx.memory());
    detail::agreement ask(ctx.memory());
    ask.reserve(comm.size());
    sizes.resize((ranks + 1) * (before + 1));
    auto const local = [&] {
      v = detail::as_output<1>(ctx, values);
      detail::argument_table("sum_counts").writes("values", v);
      all.resize(detail::size_product(v.extents[0] + before, ranks));
      own.resize(v.extents[0] + before);
    };
    if (ranks == 1) return local();
    detail::failure const wrong = detail::failure_of(local);
    index_t const n = v.extents[0];
    detail::intention mine{detail::step::sum_counts};
    auto word = detail::agreement::word_of(mine, wrong);
    std::uint64_t *const own_size = sizes.data(), *const size_of = own_size + before + 1;
    own_size[before] = static_cast<std::uint64_t>(n);
    ask.gather(ctx, comm, word, wrong, own_size, size_of, before + 1);
    for (index_t r = 1; r < ranks; ++r) {
      auto const first = size_of[before], theirs = size_of[r * (before + 1) + before];
      detail::expects(theirs == first, "sum_counts: rank 0 has ", first, " values but rank ", r,
                      " has ", theirs, "; all ranks must pass as many");
    }
    if (n == 0) return;
    for (index_t i = 0; i < n; ++i) {
      T const value = v(i);
      std::memcpy(&own[before + i], &value, sizeof value);
    }
    ++mine.phase;
    word = detail::agreement::word_of(mine, wrong);
    detail::keep_if_lost(
        [&] { ask.gather(ctx, comm, word, wrong, own.data(), all.data(), before + n, true); }, own,
        all);
    auto const value = [&](index_t r, index_t i) {
      T of_rank;
      std::memcpy(&of_rank, &all[r * (before + n) + before + i], sizeof of_rank);
      return of_rank;
    };
    // The sums stand where this rank's values were, until it is known that all of them fit.
    for (index_t i = 0; i < n; ++i) {
      T sum = value(0, i);
      for (index_t r = 1; r < ranks; ++r)
        if constexpr (std::is_integral_v<T>)
          detail::expects(!__builtin_add_overflow(sum, value(r, i), &sum), "sum_counts: values(", i,
                          ") of ranks 0 to ", r, " add up to what an integer of ", sizeof(T),
                          " bytes cannot hold");
        else
          sum += value(r, i);
      std::memcpy(&own[before + i], &sum, sizeof sum);
    }
    for (index_t i = 0; i < n; ++i) std::memcpy(&v(i), &own[before + i], sizeof(T));
  }
};
/// `sum_counts(ctx, comm, values)`, collective: values [n] become their sums over the ranks of
/// `comm`, in place: what a loss or a bias update reads whose load is that of several ranks.
/// Integers of 32 bits or more, or double (importance, load, targets of biases); several statistics
/// that stand one behind the other need one call. Ranks are summed in their order, so that every
/// rank has the same bits. All ranks pass as many values; what is wrong on one rank throws on all,
/// except a lack of the few hundred bytes per rank by which ranks tell each other. A tensor of rank
/// 2 without gaps, such as a histogram, is passed as one of rank 1, make_view(data, rows *
/// columns). Cost: one all_gather of 8 (n + 8) bytes of each rank, one of 72 before it, and memory
/// for n values of every rank and n more.
inline constexpr sum_counts_fn sum_counts{};

}  // namespace expar::inline v0
