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
    auto const v = detail::as_output<1>(ctx, values);
    using T = detail::element_of<decltype(v)>;
    static_assert((std::is_integral_v<T> && sizeof(T) >= 4) || std::is_same_v<T, double>,
                  "expar: what is summed over ranks are integers of at least 32 bits, or double");
    auto const ranks = static_cast<std::size_t>(comm.size());
    index_t const n = v.extents[0];
    detail::buffer<std::uint64_t> words(ctx.memory());
    detail::buffer<T> all(ctx.memory()), packed(ctx.memory());
    detail::agreement ask(ctx.memory());
    ask.reserve(comm.size());
    words.resize(ranks);
    detail::failure const wrong = detail::failure_of([&] {
      detail::argument_table("sum_counts").writes("values", v);
      all.resize(detail::size_product(n, comm.size()));
      packed.resize(n);
    });
    if (ranks == 1 && !wrong) return;
    std::uint64_t const word = wrong ? 0 : static_cast<std::uint64_t>(n) + 1;
    all_gather(ctx, comm, &word, words.data(), sizeof word, ask.counts());
    for (std::size_t r = 0; r < ranks; ++r)
      if (words.data()[r] == 0) ask.fail(ctx, comm, wrong);
    for (std::size_t r = 1; r < ranks; ++r)
      detail::expects(words.data()[r] == words.data()[0], "sum_counts: rank 0 has ",
                      words.data()[0] - 1, " values but rank ", r, " has ", words.data()[r] - 1,
                      "; all ranks must pass as many");
    if (n == 0) return;
    for (index_t i = 0; i < n; ++i) packed[i] = v(i);
    all_gather(ctx, comm, packed.data(), all.data(), static_cast<std::size_t>(n) * sizeof(T),
               ask.counts());
    // The sums stand where the values of rank 0 are, until it is known that all of them fit.
    for (index_t r = 1; r < comm.size(); ++r)
      for (index_t i = 0; i < n; ++i) {
        T& sum = all[i];
        if constexpr (std::is_integral_v<T>)
          detail::expects(!__builtin_add_overflow(sum, all[r * n + i], &sum), "sum_counts: values(",
                          i, ") of ranks 0 to ", r, " add up to what an integer of ", sizeof(T),
                          " bytes cannot hold");
        else
          sum += all[r * n + i];
      }
    for (index_t i = 0; i < n; ++i) v(i) = all[i];
  }
};
/// `sum_counts(ctx, comm, values)`, collective: values [n] become their sums over the ranks of
/// `comm`, in place: what a loss or a bias update reads whose load is that of several ranks.
/// Integers of 32 bits or more, or double (importance, load, targets of biases); several statistics
/// that stand one behind the other need one call. Ranks are summed in their order, so that every
/// rank has the same bits. All ranks pass as many values; what is wrong on one rank throws on all,
/// except a lack of the few hundred bytes per rank by which ranks tell each other. A tensor of rank
/// 2 without gaps, such as a histogram, is passed as one of rank 1, make_view(data, rows *
/// columns). Cost: one all_gather of n values of each rank, one of 8 bytes before it, and memory
/// for n values of every rank and n more.
inline constexpr sum_counts_fn sum_counts{};

}  // namespace expar::inline v0
