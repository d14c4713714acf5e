// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/communicator.hpp>
#include <expar/detail/buffer.hpp>

namespace expar::inline v0 {
namespace detail {

/// Byte counts and displacements for tier 1 on tier 2. Who keeps one calls without allocating; up
/// to 64 ranks need no memory at all.
class fixed_counts {
 public:
  explicit fixed_counts(std::pmr::memory_resource* memory) : table_(memory) {}
  /// Room for calls among so many ranks.
  void reserve(int ranks) {
    if (ranks > few) table_.resize(3 * static_cast<std::size_t>(ranks));
  }

  /// Block p of `in` begins at p * step and has `bytes` bytes; block s of `out` at s * bytes.
  template <class Comm>
  void run(host_context const& ctx, Comm& comm, void const* in, std::size_t step, void* out,
           std::size_t bytes) {
    auto const ranks = static_cast<std::size_t>(comm.size());
    reserve(comm.size());
    std::size_t few_counts[3 * few];
    std::size_t* const count = comm.size() > few ? table_.data() : few_counts;
    for (std::size_t p = 0; p < ranks; ++p) {
      count[p] = bytes;
      count[ranks + p] = p * step;
      count[2 * ranks + p] = p * bytes;
    }
    byte_counts const counts{count, ranks}, from{count + ranks, ranks},
        to{count + 2 * ranks, ranks};
    comm.all_to_all_v(ctx, in, counts, from, out, counts, to);
  }

 private:
  static constexpr int few = 64;
  buffer<std::size_t> table_;
};

template <class Comm>
constexpr auto check_tier_1() {
  static_assert(collective_communicator<Comm>,
                "expar: this needs a communicator with all_to_all, all_gather and barrier, or with "
                "all_to_all_v");
}

}  // namespace detail

struct all_to_all_fn {
  template <class Comm>
  void operator()(host_context const& ctx, Comm& comm, void const* in, void* out,
                  std::size_t bytes) const {
    detail::fixed_counts counts(ctx.memory());
    (*this)(ctx, comm, in, out, bytes, counts);
  }
  /// The same, with a table that is kept from call to call.
  template <class Comm>
  void operator()(host_context const& ctx, Comm& comm, void const* in, void* out, std::size_t bytes,
                  detail::fixed_counts& counts) const {
    detail::check_tier_1<Comm>();
    if constexpr (detail::native_collectives<Comm, host_context>)
      comm.all_to_all(ctx, in, out, bytes);
    else
      counts.run(ctx, comm, in, bytes, out, bytes);
  }
};
/// `all_to_all(ctx, comm, in, out, bytes)`. Collective. Block s of `out` becomes block
/// `comm.rank()` of the `in` of rank s; blocks have `bytes` bytes. Uses the communicator's own, or
/// all_to_all_v where it has only that.
inline constexpr all_to_all_fn all_to_all{};

struct all_gather_fn {
  template <class Comm>
  void operator()(host_context const& ctx, Comm& comm, void const* in, void* out,
                  std::size_t bytes) const {
    detail::fixed_counts counts(ctx.memory());
    (*this)(ctx, comm, in, out, bytes, counts);
  }
  template <class Comm>
  void operator()(host_context const& ctx, Comm& comm, void const* in, void* out, std::size_t bytes,
                  detail::fixed_counts& counts) const {
    detail::check_tier_1<Comm>();
    if constexpr (detail::native_collectives<Comm, host_context>)
      comm.all_gather(ctx, in, out, bytes);
    else
      counts.run(ctx, comm, in, 0, out, bytes);
  }
};
/// `all_gather(ctx, comm, in, out, bytes)`. Collective. Block s of `out` becomes the `bytes` bytes
/// that rank s passes as `in`.
inline constexpr all_gather_fn all_gather{};

}  // namespace expar::inline v0
