// SPDX-License-Identifier: Apache-2.0
// A framework with tensors and ranks of its own. The library has seen neither, and neither derives
// from anything of the library.

#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include <expar/expar.hpp>
#include <expar/laws.hpp>

namespace mine {

/// A matrix with a pitch, and with names that nobody could guess.
template <class T>
struct sheet {
  int height, width, step;
  std::vector<T> ink;

  sheet(int h, int w) : height(h), width(w), step(w + 3), ink(std::size_t(h) * std::size_t(step)) {}
  T& at(int i, int j) { return ink[std::size_t(i) * std::size_t(step) + std::size_t(j)]; }
};

/// Ranks that are threads which look into each other's pockets.
class crew {
 public:
  explicit crew(int n) : gate_(n), pockets_(std::size_t(n)) {}

  struct member {
    crew* all;
    int number;

    int rank() const noexcept { return number; }
    int size() const noexcept { return int(all->pockets_.size()); }
    void all_to_all_v(expar::host_context const&, void const* in, expar::byte_counts counts,
                      expar::byte_counts from, void* out, expar::byte_counts,
                      expar::byte_counts to) const {
      auto const me = std::size_t(number);
      all->pockets_[me] = {static_cast<char const*>(in), counts, from};
      all->gate_.arrive_and_wait();
      for (std::size_t p = 0; p < all->pockets_.size(); ++p) {
        auto const& theirs = all->pockets_[p];
        if (theirs.counts[me] != 0)
          std::memcpy(static_cast<char*>(out) + to[p], theirs.in + theirs.from[me],
                      theirs.counts[me]);
      }
      all->gate_.arrive_and_wait();
    }
  };

 private:
  struct pocket {
    char const* in = nullptr;
    expar::byte_counts counts, from;
  };
  std::barrier<> gate_;
  std::vector<pocket> pockets_;
};

struct choices {
  sheet<std::int32_t> ids;
  sheet<double> weights;
};

}  // namespace mine

template <class T>
struct expar::tensor_traits<mine::sheet<T>> {
  static auto view(auto& s) { return expar::make_view(s.ink.data(), s.height, s.width, s.step); }
};

static_assert(expar::variable_communicator<mine::crew::member>);
static_assert(expar::tensor<mine::sheet<double>, 2>);

/// What goes wrong on one rank, or nothing.
static std::string work(mine::crew::member comm) {
  expar::host_context const ctx;
  constexpr int experts = 5, top_k = 2, hidden = 7;
  int const tokens = 3 * comm.rank();  // none on the first rank

  std::string law = expar::broken_communicator_law(ctx, comm);
  if (!law.empty()) return law;

  mine::sheet<double> x(tokens, hidden), out(tokens, hidden);
  mine::choices routes{{tokens, top_k}, {tokens, top_k}};
  law = expar::broken_tensor_law<2>(x, {tokens, hidden},
                                    [&](int t, int h) -> double& { return x.at(t, h); });
  if (!law.empty()) return law;
  for (int t = 0; t < tokens; ++t) {
    for (int h = 0; h < hidden; ++h) x.at(t, h) = 100 * comm.rank() + 10 * t + h;
    routes.ids.at(t, 0) = t % experts, routes.weights.at(t, 0) = 0.25;
    routes.ids.at(t, 1) = (t + comm.rank()) % experts, routes.weights.at(t, 1) = 0.75;
  }

  expar::expert_parallel moe(comm, {experts, top_k, hidden});
  auto batch = moe.dispatch(ctx, x, routes);
  moe.combine(ctx, batch, batch.rows(), out);  // experts that change nothing
  for (int t = 0; t < tokens; ++t)
    for (int h = 0; h < hidden; ++h)
      if (!(std::abs(out.at(t, h) - x.at(t, h)) <= 0))
        return "a token did not come home as it left";
  return "";
}

int main() {
  constexpr int ranks = 3;
  mine::crew crew(ranks);
  std::vector<std::string> wrong(ranks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank)
    threads.emplace_back([&, rank] { wrong[std::size_t(rank)] = work({&crew, rank}); });
  for (auto& thread : threads) thread.join();
  for (int rank = 0; rank < ranks; ++rank)
    if (!wrong[std::size_t(rank)].empty()) {
      std::printf("rank %d: %s\n", rank, wrong[std::size_t(rank)].c_str());
      return 1;
    }
  std::printf("the laws hold, and %d ranks swapped their rows\n", ranks);
}
