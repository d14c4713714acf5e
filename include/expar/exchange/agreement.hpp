// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <initializer_list>
#include <string>

#include <expar/exchange/collectives.hpp>

namespace expar {
inline namespace v0 {
namespace detail {

/// Runs local checks and gives the sentence of the one that failed, or nothing. A rank that fails a
/// check must still take part in the exchange that follows, or the others would wait for it
/// forever; the exchange carries the news, and then all ranks throw.
template <class Checks>
std::string failure_of(Checks checks) {
  try {
    checks();
  } catch (error const& e) {
    return e.what();
  }
  return {};
}

/// Collective, once every rank knows that some rank failed: throws, on all ranks, the sentence of
/// the lowest rank that has one, with its number.
template <class Comm>
[[noreturn]] void throw_failure(host_context const& ctx, Comm& comm, std::string const& mine) {
  constexpr std::size_t room = 256;
  auto const ranks = static_cast<std::size_t>(comm.size());
  buffer<char> texts(ctx.memory());
  char* const all = texts.assign((ranks + 1) * room, '\0');
  char* const own = all + ranks * room;
  mine.copy(own, room - 1);
  all_gather(ctx, comm, own, all, room);
  for (std::size_t r = 0; r < ranks; ++r)
    if (char const* text = all + r * room; *text != '\0')
      throw error(sentence(text, " (rank ", r, ")"));
  fail("a rank failed without saying why");
}

/// A number that all ranks must pass alike, and its name.
struct agreed_value {
  char const* name;
  double value;
};

/// Collective. Throws the same sentence on all ranks unless every rank passes the same values.
template <class Comm>
void expects_agreement(host_context const& ctx, Comm& comm, char const* what,
                       std::initializer_list<agreed_value> mine) {
  std::size_t const n = mine.size(), ranks = static_cast<std::size_t>(comm.size());
  buffer<double> values(ctx.memory());
  double* const all = values.resize((ranks + 1) * n);
  double* own = all + ranks * n;
  for (agreed_value const& v : mine) *own++ = v.value;
  all_gather(ctx, comm, all + ranks * n, all, n * sizeof(double));
  std::size_t field = 0;
  for (agreed_value const& v : mine) {
    for (std::size_t r = 1; r < ranks; ++r)
      expects(all[r * n + field] == all[field], what, ": ", v.name, " is ", all[field],
              " on rank 0 but ", all[r * n + field], " on rank ", r,
              "; all ranks must pass the same");
    ++field;
  }
}

}  // namespace detail
}  // namespace v0
}  // namespace expar
