// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/word.hpp>

#include <cstring>

#include "../support/catch.hpp"
#include "../support/thrown_by.hpp"

using expar::detail::intention;
using expar::detail::step;
using expar::detail::word;

namespace {

word word_of(intention const& i) {
  word w;
  w.intended = i.packed(), w.object = i.object;
  return w;
}
std::string difference(intention const& first, intention const& other) {
  return expar_test::thrown_by(
      [&] { expar::detail::expects_same(word_of(first), word_of(other), 3); });
}

}  // namespace

TEST_CASE("a word holds an intention whole, and no intention is that of a rank that failed") {
  for (std::uint64_t batch : {0ull, 1ull, 77ull, (1ull << 48) - 1})
    for (unsigned phase : {0u, 1u, 255u}) {
      intention const in{step::combine_backward, batch, 99, phase};
      auto const out = intention::of(in.packed(), 99);
      CHECK(out.what == in.what);
      CHECK(out.batch == batch);
      CHECK(out.phase == phase);
      CHECK(in.packed() != 0);
    }
  word const w = word_of({step::place, 5, 6});
  std::byte message[sizeof w];
  std::memcpy(message, &w, sizeof w);
  CHECK(expar::detail::word_at(message).matches(w));
}

TEST_CASE("ranks that do different things are named with what each calls") {
  std::string const rule = "; all ranks call the same operations in the same order";
  CHECK(difference({step::combine, 4, 1, 2}, {step::combine, 4, 1, 2}) == "nothing was thrown");
  CHECK(difference({step::combine, 4}, {step::combine, 5}) ==
        "expar: rank 0 calls combine for its batch 4 while rank 3 calls combine for its batch 5" +
            rule);
  CHECK(difference({step::construct}, {step::dispatch, 5}) ==
        "expar: rank 0 calls the constructor while rank 3 calls dispatch for its batch 5" + rule);
  CHECK(difference({step::place, 0, 7}, {step::place, 0, 8}) ==
        "expar: rank 0 calls place of one object while rank 3 calls it of another" + rule);
  CHECK(difference({step::combine, 4, 7, 0}, {step::combine, 4, 7, 1}) ==
        "expar: rank 0 is at another message of combine than rank 3" + rule);
}
