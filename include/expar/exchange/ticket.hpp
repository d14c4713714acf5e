// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/communicator.hpp>

namespace expar::inline v0 {

/// What waits for an exchange that was started: wait() returns when `out` is complete and `in` may
/// be reused, or throws; again, or where the ticket was moved from, it does nothing. The destructor
/// waits as well, and throws nothing.
template <class T>
concept exchange_ticket = std::movable<T> && requires(T& t) {
  t.wait();
};

/// Optional in tier 2, an exchange that is on its way while the caller computes:
///   auto ticket = c.start_all_to_all_v(on, in, in_counts, in_displacements, out, ...);
/// returns at once what all_to_all_v would wait for. Any number may be on their way. All ranks
/// start them in the same order, among them call other collectives as they like, and wait in any
/// order, each its own. Until wait() returns, buffers and tables stay where they are, and the
/// communicator outlives its tickets. A rank that does not start one is lost to those who wait for
/// it.
template <class C, class Context = host_context>
concept starting_communicator = variable_communicator<C, Context> &&
    requires(std::remove_cvref_t<C>& c, Context const& on, void const* in, void* out,
             byte_counts n) {
  { c.start_all_to_all_v(on, in, n, n, out, n, n) } -> exchange_ticket;
};

namespace detail {

/// Of an exchange that is complete.
struct no_ticket {
  void wait() const noexcept {}
};

}  // namespace detail

struct start_all_to_all_v_fn {
  template <variable_communicator Comm>
  auto operator()(host_context const& ctx, Comm& comm, void const* in, byte_counts counts,
                  byte_counts from, void* out, byte_counts out_counts, byte_counts to) const {
    if constexpr (starting_communicator<Comm>) {
      return comm.start_all_to_all_v(ctx, in, counts, from, out, out_counts, to);
    } else {
      comm.all_to_all_v(ctx, in, counts, from, out, out_counts, to);
      return detail::no_ticket{};
    }
  }
};
/// `start_all_to_all_v(ctx, comm, in, counts, displacements, out, out_counts, out_displacements)`
/// gives a ticket, to wait() for: see starting_communicator. A communicator that is none exchanges
/// here, and its ticket has nothing to wait for.
inline constexpr start_all_to_all_v_fn start_all_to_all_v{};

}  // namespace expar::inline v0
