// SPDX-License-Identifier: Apache-2.0
#include <expar/router/detail/put_rows.hpp>

#include <cstdint>
#include <vector>

#include "../../support/catch.hpp"

namespace {

template <class From, class To>
void require_rows(bool backwards = false) {
  constexpr int lanes = expar::detail::vector_bytes / static_cast<int>(sizeof(From));
  for (int k = 1; k <= 13; ++k)
    for (int count = 1; count <= lanes; ++count)
      for (int pitch : {k, k + 1, k + 5}) {
        std::vector<From> packs(static_cast<std::size_t>(k * lanes));
        for (std::size_t i = 0; i < packs.size(); ++i) packs[i] = static_cast<From>(i);
        auto const size = static_cast<std::size_t>(count * pitch);
        To const untouched = expar::narrow<To>(expar::accumulator_t<To>(-3));
        std::vector<To> out(size, untouched);
        auto to = expar::make_view(out.data(), count, k);
        to.strides[0] = backwards ? -pitch : pitch;
        if (backwards) to.data += (count - 1) * pitch;
        expar::detail::put_rows<lanes>(static_cast<From const*>(packs.data()), k, to);
        for (int l = 0; l < count; ++l)
          for (int j = 0; j < pitch; ++j) {
            int const row = backwards ? count - 1 - l : l;
            auto const made = expar::widen(out[static_cast<std::size_t>(row * pitch + j)]);
            CAPTURE(k, count, pitch, l, j);
            REQUIRE(made == (j < k ? static_cast<decltype(made)>(j * lanes + l) : -3));
          }
      }
}

}  // namespace

TEST_CASE("packs become rows", "[router]") {
  require_rows<float, float>();
  require_rows<float, float>(true);
  require_rows<float, expar::bfloat16>();
  require_rows<float, double>();
  require_rows<double, double>();
}

template <int Lanes>
void require_expert_rows() {
  std::int32_t numbers[5 * Lanes], out[5 * Lanes];
  for (int i = 0; i < 5 * Lanes; ++i) numbers[i] = i;
  for (int k = 1; k <= 5; ++k) {
    expar::detail::put_rows<Lanes>(static_cast<std::int32_t const*>(numbers), k,
                                   expar::make_view(static_cast<std::int32_t*>(out), Lanes, k));
    for (int l = 0; l < Lanes; ++l)
      for (int j = 0; j < k; ++j) REQUIRE(out[l * k + j] == j * Lanes + l);
  }
}

TEST_CASE("experts become rows, of as many lanes as numbers of 4 or 8 bytes have", "[router]") {
  require_expert_rows<expar::detail::pack<float>::lanes>();
  require_expert_rows<expar::detail::pack<double>::lanes>();
}
