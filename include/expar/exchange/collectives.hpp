// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/communicator.hpp>
#include <expar/detail/buffer.hpp>

namespace expar {
inline namespace v0 {
namespace detail {

// Tier 1 on tier 2: block p of `in` begins at p * step and has `bytes` bytes; block s of `out` at
// s * bytes.
template <class Comm>
void fixed_by_variable(host_context const& ctx, Comm& comm, void const* in, std::size_t step,
                       void* out, std::size_t bytes) {
  auto const ranks = static_cast<std::size_t>(comm.size());
  buffer<std::size_t> table(ctx.memory());
  std::size_t* const count = table.resize(3 * ranks);
  for (std::size_t p = 0; p < ranks; ++p) {
    count[p] = bytes;
    count[ranks + p] = p * step;
    count[2 * ranks + p] = p * bytes;
  }
  byte_counts const counts{count, ranks}, from{count + ranks, ranks}, to{count + 2 * ranks, ranks};
  comm.all_to_all_v(ctx, in, counts, from, out, counts, to);
}

}  // namespace detail

/// Collective. Block s of `out` becomes block `comm.rank()` of the `in` of rank s; blocks have
/// `bytes` bytes. Uses the communicator's own, or all_to_all_v where it has only that.
inline constexpr struct all_to_all_fn {
  template <class Comm>
  void operator()(host_context const& ctx, Comm& comm, void const* in, void* out,
                  std::size_t bytes) const {
    static_assert(
        collective_communicator<Comm>,
        "expar: this needs a communicator with all_to_all, all_gather and barrier, or with "
        "all_to_all_v");
    if constexpr (detail::native_collectives<Comm, host_context>)
      comm.all_to_all(ctx, in, out, bytes);
    else
      detail::fixed_by_variable(ctx, comm, in, bytes, out, bytes);
  }
} all_to_all{};

/// Collective. Block s of `out` becomes the `bytes` bytes that rank s passes as `in`.
inline constexpr struct all_gather_fn {
  template <class Comm>
  void operator()(host_context const& ctx, Comm& comm, void const* in, void* out,
                  std::size_t bytes) const {
    static_assert(
        collective_communicator<Comm>,
        "expar: this needs a communicator with all_to_all, all_gather and barrier, or with "
        "all_to_all_v");
    if constexpr (detail::native_collectives<Comm, host_context>)
      comm.all_gather(ctx, in, out, bytes);
    else
      detail::fixed_by_variable(ctx, comm, in, 0, out, bytes);
  }
} all_gather{};

}  // namespace v0
}  // namespace expar
