// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <expar/router/detail/column_slots.hpp>
#include <expar/router/detail/fill_slots.hpp>
#include <expar/router/detail/key_rows.hpp>
#include <expar/router/detail/transpose.hpp>
#include <expar/router/top_k.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0::detail {
inline namespace EXPAR_VECTORS {

/// The k best experts of each row to ids [k][lanes], -1 where there are fewer; gives the largest
/// keys. For more experts than slots, and k <= Slots / 2.
template <int Slots>
pack<float> select_rows(key_rows const& keys, int k, std::int32_t* ids, float* best_keys) {
  using p = pack<float>;
  constexpr int lanes = p::lanes, width = Slots / lanes;
  int const experts = keys.experts;
  alignas(64) float largest[lanes * Slots], by_class[Slots * lanes], thresholds[lanes];
  for (int l = 0; l < lanes; ++l) {
    p most[width];
    for (p& m : most) m = p::all(-infinity<float>);
    keys.for_each_strip(l, 0, experts, [&most](float const* strip) {
      for (int i = 0; i < key_rows::strip / lanes; ++i)
        most[i % width] = larger(p::load(strip + i * lanes), most[i % width]);
    });
    for (int i = 0; i < width; ++i) most[i].store(largest + l * Slots + i * lanes);
  }
  transpose(static_cast<float const*>(largest), Slots, Slots, static_cast<float*>(by_class));
  typename p::vector classes[Slots];
  for (int i = 0; i < Slots; ++i) classes[i] = p::load(by_class + i * lanes).v;
  kth_largest<Slots>(static_cast<typename p::vector*>(classes), k).store(thresholds);
  column_slots<Slots> places;
  int filled[lanes];
  fill_slots(keys, static_cast<float const*>(thresholds), places, static_cast<int*>(filled));
  places.sort(static_cast<int const*>(filled), k, ids, best_keys);
  for (int l = 0; l < lanes; ++l)
    if (filled[l] > Slots) {
      std::int32_t mine[Slots];
      float best[Slots];
      select_top_k(keys.row[l], experts, k, static_cast<std::int32_t*>(mine),
                   static_cast<float*>(best));
      for (int j = 0; j < k; ++j) {
        ids[j * lanes + l] = mine[j];
        best_keys[j * lanes + l] = mine[j] < 0 ? -infinity<float> : best[j];
      }
    }
  return larger(p{classes[0]}, p{classes[Slots / 2]});
}

}  // namespace EXPAR_VECTORS
}  // namespace expar::inline v0::detail
EXPAR_IEEE_END
