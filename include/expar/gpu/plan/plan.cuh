// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <vector>

#include <expar/detail/arguments.hpp>
#include <expar/gpu/detail/buffer.cuh>
#include <expar/gpu/detail/carver.cuh>
#include <expar/gpu/detail/launch.cuh>
#include <expar/gpu/plan/detail/place.cuh>

namespace expar::inline v0::gpu {

namespace detail {

/// Tables of one number per expert fit the 48 KiB that a block has without asking.
inline constexpr int most_experts = 12000;

/// What a plan has arrays for.
struct plan_shape {
  index_t tokens;
  int top_k, experts;
  index_t tiles;                  // as many as a launch for that many tokens or fewer may have
  std::size_t scratch_bytes = 0;  // what the launch works with
};

/// What stands where in the memory of a plan.
struct plan_arrays {
  unsigned* control;  // first: it stays where it is, and what it holds, when the shape changes
  std::int32_t *ids, *locations, *bases;
  index_t *counts, *offsets;
  unsigned char* scratch;

  plan_arrays(carver& memory, plan_shape const& s)
      : control(memory.take<unsigned>(2)),
        ids(memory.take<std::int32_t>(s.tokens * s.top_k)),
        locations(memory.take<std::int32_t>(s.tokens * s.top_k)),
        bases(memory.take<std::int32_t>(s.tiles * s.experts)),
        counts(memory.take<index_t>(2 * (index_t{s.experts} + 1))),
        offsets(counts == nullptr ? nullptr : counts + s.experts + 1),
        scratch(memory.take<unsigned char>(static_cast<index_t>(s.scratch_bytes))) {}
};
inline std::size_t bytes_of(plan_shape const& s) {
  carver nothing;
  plan_arrays(nothing, s);
  return nothing.bytes();
}

inline void check_shape(index_t tokens, index_t top_k, int experts) {
  expar::detail::expects(experts >= 1 && experts <= most_experts, "plan: experts is ", experts,
                         "; a device plan has 1 to ", most_experts);
  expar::detail::expects(
      top_k <= INT32_MAX && expar::detail::size_product(tokens, top_k) <= INT32_MAX,
      "plan: ids has ", tokens, " x ", top_k, " routes; at most ", INT32_MAX, " are possible");
}

/// How routes are cut into tiles where a plan is made from ids: few tiles, so that the last block
/// has little to sum, but enough to occupy the device.
struct place_grid {
  int warps, steps;
  index_t tile, tiles;
  index_t most_tiles;  // of as many routes or fewer: there are fewer tiles where steps begin

  place_grid(index_t routes, int experts) {
    auto const fit = std::bit_floor(static_cast<unsigned>(most_experts / experts));
    warps = fit < place_warps ? static_cast<int>(fit) : place_warps;
    index_t const run = index_t{warps} * 32;
    steps = routes <= run * 128 ? 1 : routes <= run * 256 ? 2 : place_steps;
    tile = run * steps;
    tiles = routes == 0 ? 1 : (routes + tile - 1) / tile;
    index_t const runs = (routes + run - 1) / run;
    most_tiles = std::max(tiles, std::min<index_t>(runs, 128));
  }
};

inline void check_factor(char const* what, fixed_capacity layout) {
  expar::detail::expects(layout.rows >= 0 || layout.factor > 0, what, ": capacity factor is ",
                         layout.factor,
                         "; on a device it is positive, since others need the counts");
}

/// Routes take their places in the order of t * token_stride + j * choice_stride, tile by tile of
/// 2^bits; routes of one tile know their places among each other.
struct tile_order {
  index_t token_stride, choice_stride;
  int bits;

  EXPAR_HD constexpr index_t tile(index_t t, int j) const {
    return (t * token_stride + j * choice_stride) >> bits;
  }
};

}  // namespace detail

/// What a kernel sees of a plan, by value.
struct plan_view {
  std::int32_t const* ids;        // [tokens, top_k]; -1: no expert
  std::int32_t const* locations;  // [tokens, top_k], within the tile; -1: no expert
  std::int32_t const* bases;      // [tiles, experts]: the place that a tile begins with
  index_t const* counts;
  index_t const* offsets;
  index_t tokens, capacity;  // capacity -1: nothing is dropped
  int top_k, experts;
  detail::tile_order order;

  /// The place of a route among the rows of its expert; -1: no expert, or dropped.
  __device__ index_t location(index_t t, int j) const {
    index_t const at = t * top_k + j;
    std::int32_t const within = locations[at];
    if (within < 0) return -1;
    index_t const place = bases[order.tile(t, j) * experts + ids[at]] + within;
    return capacity >= 0 && place >= capacity ? -1 : place;
  }
  __device__ index_t row(index_t t, int j) const {
    index_t const place = location(t, j);
    return place < 0 ? -1 : offsets[ids[t * top_k + j]] + place;
  }
  __device__ index_t kept(int expert) const {
    return capacity >= 0 && counts[expert] > capacity ? capacity : counts[expert];
  }
};

/// Where every route of a batch goes, on the device: the integers of expar::route_plan. Made by
/// make_plan(); owns its arrays, and building it again reuses them, so that a plan which has grown
/// to its largest batch allocates no more. Its memory lives in the order of the stream of `ctx`: it
/// is made on that stream alone. Work on another stream that reads it is ordered by the caller.
/// Where making it throws, it is empty; but a plan whose memory would have to grow while the stream
/// is captured stays what it was.
class route_plan {
 public:
  explicit route_plan(context const& ctx) : memory_(ctx) {}
  route_plan(route_plan&& other) noexcept
      : memory_(std::move(other.memory_)),
        made_(std::exchange(other.made_, {})),
        coming_(std::exchange(other.coming_, {})),
        clear_(std::exchange(other.clear_, false)) {}
  route_plan& operator=(route_plan&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(made_, other.made_);
    std::swap(coming_, other.coming_);
    std::swap(clear_, other.clear_);
    return *this;
  }

  index_t tokens() const noexcept { return made_.view.tokens; }
  int top_k() const noexcept { return made_.view.top_k; }
  int experts() const noexcept { return made_.view.experts; }
  /// Rows per expert of a fixed_capacity layout; -1 if the layout drops nothing.
  index_t capacity() const noexcept { return made_.view.capacity; }
  int alignment() const noexcept { return made_.alignment; }
  /// Rows of the layout at most: their number depends on the ids and is known on the device alone.
  /// Exact for fixed_capacity.
  index_t max_rows() const noexcept {
    if (made_.view.capacity >= 0) return made_.view.experts * made_.view.capacity;
    index_t const routes = made_.view.tokens * made_.view.top_k;
    index_t const begun = routes < made_.view.experts ? routes : made_.view.experts;
    return routes + begun * (made_.alignment - 1);
  }
  plan_view view() const noexcept { return made_.view; }

  /// The one launch of make_plan().
  void place(context const& ctx, tensor_view<std::int32_t const, 2> ids, int experts,
             index_t capacity, int alignment, bool choice_major);

  /// What a launch that makes the plan writes.
  struct arrays {
    std::int32_t *ids, *locations;
    detail::tile_sums sums;
    unsigned char* scratch;
  };
  /// Makes room for a plan of this shape and empties the plan: the launch, of `tiles` tiles, is the
  /// caller's, and finish() after it.
  arrays arrange(context const& ctx, detail::plan_shape const& shape, index_t capacity,
                 int alignment, index_t tiles, detail::tile_order order);
  /// The launch is on its way: the plan has the shape that was arranged.
  void finish() noexcept { made_ = coming_; }

 private:
  struct state {
    plan_view view{};
    int alignment = 1;
  };

  detail::buffer<unsigned char> memory_;
  state made_, coming_;
  bool clear_ = false;  // whether the words that kernels count with are zero
};

inline route_plan::arrays route_plan::arrange(context const& ctx, detail::plan_shape const& shape,
                                              index_t capacity, int alignment, index_t tiles,
                                              detail::tile_order order) {
  auto const bytes = static_cast<index_t>(detail::bytes_of(shape));
  memory_.check_growth("plan", bytes);
  made_ = {};
  expar::detail::expects(ctx.stream() == memory_.owner().stream(),
                         "plan: the context has another stream than the one that the plan was "
                         "constructed with");
  if (memory_.resize("plan", bytes)) clear_ = false;
  detail::carver memory(memory_.data());
  detail::plan_arrays const a(memory, shape);
  if (!clear_) {
    detail::device_guard const here(ctx.device(), "plan");
    detail::check(cudaMemsetAsync(a.control, 0, 2 * sizeof(unsigned), ctx.stream()),
                  "cudaMemsetAsync", "plan");
    clear_ = true;
  }
  coming_ = {{a.ids, a.locations, a.bases, a.counts, a.offsets, shape.tokens, capacity, shape.top_k,
              shape.experts, order},
             alignment};
  return {a.ids,
          a.locations,
          {a.bases, a.counts, a.offsets, a.control, capacity, shape.experts,
           static_cast<int>(tiles), alignment},
          a.scratch};
}

inline void route_plan::place(context const& ctx, tensor_view<std::int32_t const, 2> ids,
                              int experts, index_t capacity, int alignment, bool choice_major) {
  index_t const tokens = ids.extents[0], k = ids.extents[1];
  detail::check_shape(tokens, k, experts);
  detail::place_grid const grid(tokens * k, experts);
  auto const to = arrange(ctx, {tokens, static_cast<int>(k), experts, grid.most_tiles}, capacity,
                          alignment, grid.tiles,
                          {choice_major ? 1 : k, choice_major ? tokens : 1,
                           std::countr_zero(static_cast<std::uint64_t>(grid.tile))});
  detail::place_arguments const arguments{ids.data,
                                          ids.strides[0],
                                          to.ids,
                                          to.locations,
                                          to.sums,
                                          static_cast<std::uint32_t>(tokens),
                                          static_cast<std::uint32_t>(tokens * k),
                                          static_cast<int>(k),
                                          grid.steps};
  detail::launch(
      ctx, "plan", choice_major ? detail::place_routes<true> : detail::place_routes<false>,
      grid.tiles, grid.warps * 32,
      static_cast<std::size_t>(grid.warps * (experts < 32 ? 32 : experts)) * sizeof(std::int32_t),
      arguments);
  finish();
}

struct make_plan_fn {
  template <class Ids>
  void operator()(context const& ctx, Ids const& ids, int experts, ragged layout,
                  route_plan& out) const {
    expar::detail::check_layout("plan", layout);
    expar::detail::arguments a(ctx, "plan");
    out.place(ctx, a.ids("ids", ids), experts, -1, layout.alignment, false);
  }
  template <class Ids>
  void operator()(context const& ctx, Ids const& ids, int experts, fixed_capacity layout,
                  route_plan& out) const {
    expar::detail::check_layout("plan", layout);
    detail::check_factor("plan", layout);
    expar::detail::expects(experts >= 1, "plan: experts is ", experts, "; at least 1 is needed");
    expar::detail::arguments a(ctx, "plan");
    auto const v = a.ids("ids", ids);
    expar::detail::expects(v.extents[1] <= INT32_MAX, "plan: ids has ", v.extents[1],
                           " choices; at most ", INT32_MAX, " are possible");
    index_t const capacity =
        capacity_of(layout, v.extents[0], experts, static_cast<int>(v.extents[1]), 0);
    expar::detail::check_rows_of_experts("plan", experts, capacity);
    out.place(ctx, v, experts, capacity, layout.alignment, true);
  }
  template <class Ids, class Layout = ragged>
  route_plan operator()(context const& ctx, Ids const& ids, int experts, Layout layout = {}) const {
    route_plan out(ctx);
    (*this)(ctx, ids, experts, layout, out);
    return out;
  }
};
/// `make_plan(ctx, ids, experts, layout)`, or with a route_plan to reuse as the last argument,
/// assigns a row to every route, as expar::make_plan(), in one launch and without waiting. ids:
/// [T,k] int32 on the device, rows may be pitched, -1 = no expert. An id that is not -1 .. experts
/// - 1 counts as no expert, and read_sync() reports how many there were. A fixed_capacity has rows,
/// or a positive factor: the capacity then follows from the shape alone. experts: at most 12000.
inline constexpr make_plan_fn make_plan{};

/// Bytes of a workspace_memory in which make_plan() makes the plan of any batch of up to `tokens`
/// tokens.
template <class Layout = ragged>
std::size_t plan_workspace_bytes(index_t tokens, int top_k, int experts, Layout layout = {}) {
  expar::detail::expects(tokens >= 0 && top_k >= 0, "plan_workspace_bytes: tokens is ", tokens,
                         " and top_k is ", top_k, "; neither is negative");
  expar::detail::check_layout("plan", layout);
  if constexpr (std::is_same_v<Layout, fixed_capacity>) detail::check_factor("plan", layout);
  detail::check_shape(tokens, top_k, experts);
  detail::place_grid const grid(tokens * top_k, experts);
  return detail::bytes_of({tokens, top_k, experts, grid.most_tiles});
}

/// The sums of a plan on the host.
struct plan_sums {
  std::vector<index_t> counts, offsets;  // [experts] routes that name each expert; [experts + 1]
  index_t capacity = -1;
  index_t wrong_ids = 0;  // ids that were not -1 .. experts - 1

  index_t rows() const { return offsets.empty() ? 0 : offsets.back(); }
  index_t dropped() const {
    index_t n = 0;
    for (index_t const count : counts)
      if (capacity >= 0 && count > capacity) n += count - capacity;
    return n;
  }
};

struct read_sync_fn {
  plan_sums operator()(context const& ctx, route_plan const& plan) const {
    plan_view const v = plan.view();
    if (v.counts == nullptr) return {};
    auto const n = static_cast<std::size_t>(v.experts) + 1;
    std::vector<index_t> both(2 * n);
    detail::device_guard const here(ctx.device(), "read_sync");
    detail::check(cudaMemcpyAsync(both.data(), v.counts, both.size() * sizeof(index_t),
                                  cudaMemcpyDeviceToHost, ctx.stream()),
                  "cudaMemcpyAsync", "read_sync");
    detail::check(cudaStreamSynchronize(ctx.stream()), "cudaStreamSynchronize", "read_sync");
    auto const middle = both.begin() + static_cast<std::ptrdiff_t>(n);
    return {{both.begin(), middle - 1}, {middle, both.end()}, v.capacity, *(middle - 1)};
  }
};
/// `read_sync(ctx, plan)` reads counts and offsets back. Waits for the stream.
inline constexpr read_sync_fn read_sync{};

}  // namespace expar::inline v0::gpu
