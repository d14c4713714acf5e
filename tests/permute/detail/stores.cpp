// SPDX-License-Identifier: Apache-2.0
#include <expar/permute/detail/stores.hpp>

#include <vector>

#include "../../support/catch.hpp"

using namespace expar::detail;

TEST_CASE("a row past the caches is that row, wherever it begins and ends", "[permute]") {
  std::vector<unsigned char> from(1200), to(1400);
  for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<unsigned char>(i * 7 + 1);
  for (std::size_t begin = 0; begin < 2 * line_bytes; ++begin)
    for (std::size_t bytes = 0; bytes < 800; bytes += bytes < 300 ? 1 : 37) {
      std::fill(to.begin(), to.end(), static_cast<unsigned char>(0xee));
      stream_row(to.data() + begin, from.data() + begin % 5, bytes);
      end_streams();
      bool same = true;
      for (std::size_t i = 0; i < to.size(); ++i) {
        bool const inside = i >= begin && i < begin + bytes;
        same = same && to[i] == (inside ? from[begin % 5 + i - begin] : 0xee);
      }
      INFO(bytes << " bytes at " << begin);
      REQUIRE(same);
    }
}

TEST_CASE("the next line begins at a multiple of its bytes", "[permute]") {
  alignas(line_bytes) char line[2 * line_bytes];
  for (std::size_t i = 0; i < line_bytes; ++i)
    CHECK(to_next_line(line + i) == (line_bytes - i) % line_bytes);
}
