// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include <expar/communicator.hpp>

#include "../support/random.hpp"

namespace expar_test {

/// Exchanges back to back: operations, sizes and places drawn at random, the same on every rank,
/// and each rank now and then late on its own. Collective. Gives how many bytes are wrong on this
/// rank.
template <class Comm>
long random_rounds(expar::host_context const& on, Comm& comm, int rounds, std::uint64_t seed) {
  auto const ranks = static_cast<std::size_t>(comm.size());
  auto const me = static_cast<std::size_t>(comm.rank());
  random plan(seed), lateness(seed * 31 + me + 1);
  long wrong = 0;
  std::vector<unsigned char> in, out, wanted;
  std::vector<std::size_t> counts(ranks), from(ranks), got(ranks), to(ranks), table(ranks * ranks);

  auto const value = [](std::size_t s, std::size_t r, std::size_t k, int round) {
    return static_cast<unsigned char>(s * 37 + r * 11 + k * 7 + k / 251 +
                                      static_cast<std::size_t>(round));
  };
  auto const compare = [&] {
    for (std::size_t i = 0; i < wanted.size(); ++i) wrong += wanted[i] != out[i];
  };
  for (int round = 0; round < rounds; ++round) {
    auto const kind = plan.integer(0, 9);
    auto const most = std::size_t{1} << plan.integer(0, 13);
    for (auto& n : table)
      n = plan.chance(0.3)
              ? 0
              : static_cast<std::size_t>(plan.integer(0, static_cast<std::int64_t>(most)));
    auto const block = table[0];
    auto const gap = static_cast<std::size_t>(plan.integer(0, 5));
    bool const reversed = plan.chance(0.5);
    if (lateness.chance(0.1))
      std::this_thread::sleep_for(std::chrono::microseconds(lateness.integer(0, 2000)));

    if (kind == 0) {
      comm.barrier(on);
    } else if (kind <= 2) {
      in.assign(block * ranks, 0), out.assign(block * ranks, 0), wanted = out;
      for (std::size_t p = 0; p < ranks; ++p)
        for (std::size_t k = 0; k < block; ++k) {
          in[p * block + k] = value(me, p, k, round);
          wanted[p * block + k] = value(p, kind == 1 ? me : 0, k, round);
        }
      if (kind == 1)
        comm.all_to_all(on, in.data(), out.data(), block);
      else
        comm.all_gather(on, in.data(), out.data(), block);
      compare();
    } else {
      std::size_t sent = 0, received = 0;
      for (std::size_t i = 0; i < ranks; ++i) {
        std::size_t const p = reversed ? ranks - 1 - i : i;
        counts[p] = table[me * ranks + p], from[p] = sent, sent += counts[p] + gap;
        got[p] = table[p * ranks + me], to[p] = received, received += got[p] + gap;
      }
      in.assign(sent, 0), out.assign(received, 0xA5), wanted = out;
      for (std::size_t p = 0; p < ranks; ++p) {
        for (std::size_t k = 0; k < counts[p]; ++k) in[from[p] + k] = value(me, p, k, round);
        for (std::size_t k = 0; k < got[p]; ++k) wanted[to[p] + k] = value(p, me, k, round);
      }
      comm.all_to_all_v(on, in.data(), counts, from, out.data(), got, to);
      compare();
    }
  }
  return wrong;
}

}  // namespace expar_test
