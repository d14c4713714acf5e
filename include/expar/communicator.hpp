// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>
#include <span>
#include <type_traits>

#include <expar/config.hpp>
#include <expar/context.hpp>

namespace expar::inline v0 {

/// Byte counts or byte displacements, one per rank.
using byte_counts = std::span<std::size_t const>;

/// What a communicator can do, known at compile time. A communicator states it as a static member
/// `traits`; one that is silent has these defaults.
struct communicator_traits {
  memory_space space = memory_space::host;  ///< the memory that its buffers live in
  bool concurrent_ranks = true;             ///< ranks run at once: one may wait for another's write
  /// Where a rank sends another size than its peer expects, or is in another kind of collective,
  /// both ranks of that pair throw expar::disagreement once no message of the call is pending. What
  /// other pairs exchange is delivered, and the next collective works.
  bool checks_sizes = false;
};

/// Tier 0: who am I, and how many are we.
template <class C>
concept communicator = requires(std::remove_cvref_t<C>& c) {
  { c.rank() }
  noexcept->std::same_as<int>;
  { c.size() }
  noexcept->std::same_as<int>;
};

namespace detail {

template <class C>
concept states_traits = requires {
  { std::remove_cvref_t<C>::traits } -> std::convertible_to<communicator_traits>;
};

template <class C, class Context>
concept native_collectives = communicator<C> &&
    requires(std::remove_cvref_t<C>& c, Context const& on, void const* in, void* out,
             std::size_t n) {
  c.all_to_all(on, in, out, n);
  c.all_gather(on, in, out, n);
  c.barrier(on);
};

}  // namespace detail

template <communicator C>
constexpr communicator_traits traits_of() {
  if constexpr (detail::states_traits<C>)
    return std::remove_cvref_t<C>::traits;
  else
    return {};
}

/// Tier 2: byte counts and displacements per peer. Collective, with the context first:
///   c.all_to_all_v(on, in, in_counts, in_displacements, out, out_counts, out_displacements)
/// gives every rank, from each rank s, the in_counts[this rank] bytes that s keeps at its
/// in_displacements[this rank], at out_displacements[s]. out_counts[s] equals what s sends. A
/// segment may be empty; `in` and `out` do not overlap. On a host context it returns when `out` is
/// complete and `in` may be reused. One member function is enough for everything that the library
/// does.
template <class C, class Context = host_context>
concept variable_communicator = communicator<C> &&
    requires(std::remove_cvref_t<C>& c, Context const& on, void const* in, void* out,
             byte_counts n) {
  c.all_to_all_v(on, in, n, n, out, n, n);
};

namespace detail {

/// Optional in tier 2, where a rank can read what others send where they have it:
///   c.read_all_to_all_v(on, in, in_counts, in_displacements, out_counts, read)
/// is all_to_all_v that copies nothing: once all ranks have come it calls read(place_of), where
/// place_of(s) is what rank s sends here (a std::byte const*); it returns when all ranks have read,
/// and throws then what `read` has thrown. Where sizes differ it reads nothing, and ends as
/// all_to_all_v does.
template <class C>
concept reads_in_place = requires(std::remove_cvref_t<C>& c, host_context const& on, void const* in,
                                  byte_counts n, void (*read)(std::byte const* (*)(int))) {
  c.read_all_to_all_v(on, in, n, n, n, read);
};

}  // namespace detail

/// Tier 1: fixed-size collectives. `c.all_to_all(on, in, out, n)`: block s of n bytes of `out` is
/// block `rank` of rank s; `c.all_gather(on, in, out, n)`: block s of `out` is the n bytes of rank
/// s; `c.barrier(on)`. A tier-2 communicator need not bring them: all_to_all_v serves all three.
template <class C, class Context = host_context>
concept collective_communicator =
    detail::native_collectives<C, Context> || variable_communicator<C, Context>;

/// What a kernel sees of a window: by value, `peer(p, offset)` is the address of byte `offset` of
/// rank p's part, or null where it cannot be reached by loads and stores.
template <class V>
concept window_view = std::is_trivially_copyable_v<V> && requires(V const& v, std::size_t offset) {
  { v.rank() } -> std::same_as<int>;
  { v.size() } -> std::same_as<int>;
  { v.peer(0, offset) } -> std::same_as<void*>;
};

/// Memory of equal size on every rank that every rank can write. Owns its part.
template <class W>
concept symmetric_window = std::movable<W> && requires(W const& w) {
  { w.size_bytes() } -> std::same_as<std::size_t>;
  { w.view() } -> window_view;
};

/// Tier 3: memory of a peer that can be written directly, and a phase boundary.
/// `allocate_window(n)` is collective. After `exchange_phase(on)`, which is collective, all that
/// any rank wrote to any window before it is visible to all. An algorithm on this tier is a
/// sequence of phases and waits for a peer inside a phase only if `traits.concurrent_ranks`.
template <class C, class Context = host_context>
concept window_communicator = collective_communicator<C, Context> &&
    requires(std::remove_cvref_t<C>& c, Context const& on, std::size_t n) {
  { c.allocate_window(n) } -> symmetric_window;
  c.exchange_phase(on);
};

}  // namespace expar::inline v0
