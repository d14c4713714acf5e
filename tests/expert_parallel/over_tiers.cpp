// SPDX-License-Identifier: Apache-2.0
#include <expar/comm/self.hpp>
#include <expar/expert_parallel.hpp>

#include "../support/thread_ranks.hpp"

using namespace expar_test;

namespace {

/// Tier 1 and nothing else.
class fixed_communicator {
 public:
  explicit fixed_communicator(expar::thread_communicator& comm) : comm_(comm) {}
  int rank() const noexcept { return comm_.rank(); }
  int size() const noexcept { return comm_.size(); }
  void all_to_all(expar::host_context const& on, void const* in, void* out, std::size_t n) const {
    comm_.all_to_all(on, in, out, n);
  }
  void all_gather(expar::host_context const& on, void const* in, void* out, std::size_t n) const {
    comm_.all_gather(on, in, out, n);
  }
  void barrier(expar::host_context const& on) const { comm_.barrier(on); }

 private:
  expar::thread_communicator& comm_;
};
static_assert(!expar::variable_communicator<fixed_communicator>);

using table = element_table<0, elements<float>>;

}  // namespace

TEST_CASE("all_to_all_v alone: drawn problems against a float64 reference") {
  check_drawn_problems<table>({1, 2, 3, 4, 7}, {5}, [](auto& comm, auto f) {
    bare_communicator bare(comm);
    expar::messages transport(bare);
    f(transport);
  });
}

TEST_CASE("one rank alone: drawn problems against a float64 reference") {
  check_drawn_problems<table>({1}, {6, 7, 8}, [](auto&, auto f) {
    expar::self_communicator self;
    expar::messages transport(self);
    f(transport);
  });
}

TEST_CASE("collectives of one size are enough where a capacity makes sizes equal") {
  for (int const ranks : {2, 3}) {
    auto const all = draw_problems(ranks, 9);
    REQUIRE(on_ranks(ranks, [&](auto& comm) -> std::string {
              fixed_communicator fixed(comm);
              expar::messages transport(fixed);
              for (auto const& d : all) {
                if (d->made.limited != problem::limit::capacity) continue;
                auto const wrong = with_engine<expar::fixed_capacity, expar::weights_at_decode>(
                    transport, *d, capacity_of(d->made), [&](auto& moe) {
                      engine_run<elements<float>, expar::weights_at_decode> one(*d, comm.rank());
                      expar::host_context const ctx;
                      auto const said = one.forward(ctx, moe);
                      return said.empty() ? one.backward(ctx, moe) : said;
                    });
                if (!wrong.empty()) return described(*d) + wrong;
              }
              return "";
            }) == "");
  }
}
