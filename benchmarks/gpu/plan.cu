// SPDX-License-Identifier: Apache-2.0
#include <bit>
#include <cub/device/device_radix_sort.cuh>
#include <numeric>

#include <expar/gpu/plan/plan.cuh>

#include "peer_plans.cuh"
#include "reference.cuh"
#include "suite.hpp"

namespace bench {
namespace {

using expar::gpu::route_plan;

/// What a plan of a peer reads and writes.
struct buffers {
  array<std::int32_t> ids, row_of, offsets, next;  // next: [E], for the atomics
  array<std::int32_t> sorted_ids, order, iota;     // for the sort
  array<std::int32_t> mask;                        // [T,E]
  array<unsigned char> workspace;
};

std::size_t sort(cudaStream_t s, problem const& p, buffers const& b) {
  std::size_t bytes = b.workspace.bytes();
  ok(cub::DeviceRadixSort::SortPairs(bytes == 0 ? nullptr : b.workspace.data(), bytes,
                                     reinterpret_cast<unsigned const*>(b.ids.data()),
                                     reinterpret_cast<unsigned*>(b.sorted_ids.data()),
                                     b.iota.data(), b.order.data(), static_cast<int>(p.routes()), 0,
                                     std::bit_width(static_cast<unsigned>(p.experts)), s),
     "SortPairs");
  return bytes;
}

/// Whether rows are those of the problem, or with any order within an expert.
std::string wrong_rows(problem const& p, std::vector<std::int32_t> const& row_of,
                       std::vector<std::int32_t> const& offsets, bool any_order) {
  if (offsets != p.offsets) return "the offsets are wrong";
  if (!any_order) return row_of == p.row_of ? "" : "the rows are wrong";
  std::vector<bool> taken(static_cast<std::size_t>(p.rows));
  for (std::size_t i = 0; i < row_of.size(); ++i) {
    auto const row = row_of[i], id = p.ids[i];
    if (id < 0 && row == -1) continue;
    auto const e = static_cast<std::size_t>(id);
    if (id < 0 || row < p.offsets[e] || row >= p.offsets[e + 1] ||
        taken[static_cast<std::size_t>(row)])
      return "the rows are wrong";
    taken[static_cast<std::size_t>(row)] = true;
  }
  return "";
}

}  // namespace

void measure_plan(suite& s, problem const& p) {
  if (!s.wants("plan", p)) return;
  auto const n = static_cast<int>(p.routes());
  auto const experts = std::int64_t{p.experts};
  double const bytes = 8. * n + 8. * static_cast<double>(experts + 1);
  for (int const sets : s.sets_for(bytes)) {
    std::vector<buffers> b(static_cast<std::size_t>(sets));
    std::vector<route_plan> plans;
    std::vector<std::int32_t> iota(p.ids.size());
    std::iota(iota.begin(), iota.end(), 0);
    for (auto& of : b) {
      auto const ints = [](std::int64_t size) { return array<std::int32_t>(size); };
      of = {array(p.ids),
            ints(n),
            ints(experts + 1),
            ints(experts),
            ints(n),
            ints(n),
            array(iota),
            ints(p.tokens * experts),
            {}};
      of.workspace = array<unsigned char>(static_cast<std::int64_t>(sort(s.stream(), p, of)));
      plans.emplace_back(s.context());
    }
    auto const at = [&](int set) -> buffers& { return b[static_cast<std::size_t>(set)]; };
    auto const plan_at = [&](int set) -> route_plan& {
      return plans[static_cast<std::size_t>(set)];
    };

    auto const place = [&](int set) {
      auto const ids = expar::make_view(at(set).ids.data(), p.tokens, expar::index_t{p.top_k});
      expar::gpu::make_plan(s.context(), ids, p.experts, expar::ragged{}, plan_at(set));
    };
    for (int set = 0; set < sets; ++set) place(set);  // takes its memory
    auto const wrong_plan = [&](int set) {
      on_each(s.stream(), n,
              [view = plan_at(set).view(), to = at(set).row_of.data()] __device__(std::int64_t i) {
                to[i] = static_cast<std::int32_t>(
                    view.row(i / view.top_k, static_cast<int>(i % view.top_k)));
              });
      auto const sums = expar::gpu::read_sync(s.context(), plan_at(set));
      return wrong_rows(p, at(set).row_of.read(), {sums.offsets.begin(), sums.offsets.end()},
                        false);
    };
    auto const v = plan_at(0).view();
    auto const routes_bytes = sizeof(std::int32_t) * static_cast<std::size_t>(n);
    std::vector<variant> all;
    all.push_back({variant::kind::expar,
                   "expar",
                   "",
                   place,
                   wrong_plan,
                   {{v.ids, routes_bytes},
                    {v.locations, routes_bytes},
                    {v.offsets, sizeof(expar::index_t) * (p.offsets.size())}}});

    auto const peer = [&](std::string name, std::string algorithm, std::function<void(int)> run,
                          bool any_order = false) {
      all.push_back({variant::kind::peer,
                     std::move(name),
                     std::move(algorithm),
                     std::move(run),
                     [&, any_order](int set) {
                       return wrong_rows(p, at(set).row_of.read(), at(set).offsets.read(),
                                         any_order);
                     },
                     {at(0).row_of, at(0).offsets}});
    };
    peer("radix sort", "CUB radix sort, binary search: vLLM, MegaBlocks, argsort", [&](int set) {
      auto const& of = at(set);
      sort(s.stream(), p, of);
      after_sort<<<blocks_for(std::max<std::int64_t>(n, experts + 1), 256), 256, 0, s.stream()>>>(
          of.sorted_ids.data(), of.order.data(), n, p.experts, of.row_of.data(), of.offsets.data());
    });
    peer(
        "global atomics", "counts in a block, places by atomics: SGLang, vLLM align",
        [&](int set) {
          auto const& of = at(set);
          align_count<<<1, align_threads, 0, s.stream()>>>(of.ids.data(), n, p.experts,
                                                           of.offsets.data(), of.next.data());
          align_place<<<blocks_for(n, 256), 256, 0, s.stream()>>>(of.ids.data(), n, of.next.data(),
                                                                  of.row_of.data());
        },
        true);
    peer("one-hot sums", "one-hot mask, cumulative sums: Tutel, fairseq, GShard", [&](int set) {
      auto const& of = at(set);
      ok(cudaMemsetAsync(of.mask.data(), 0, of.mask.bytes(), s.stream()), "cudaMemsetAsync");
      one_hot<<<blocks_for(n, 256), 256, 0, s.stream()>>>(of.ids.data(), n, p.top_k, p.experts,
                                                          of.mask.data());
      sum_columns<<<static_cast<unsigned>(experts), align_threads, 0, s.stream()>>>(
          of.mask.data(), p.tokens, p.experts, of.next.data());
      look_up<<<blocks_for(n, align_threads), align_threads, 0, s.stream()>>>(
          of.ids.data(), of.mask.data(), of.next.data(), n, p.top_k, p.experts, of.row_of.data(),
          of.offsets.data());
    });
    s.measure({"plan", p, bytes, bytes, sets, std::move(all)});
  }
}

}  // namespace bench
