// SPDX-License-Identifier: Apache-2.0
#include <expar/router/models.hpp>

#include <expar/router/route.hpp>

#include <fstream>
#include <set>
#include <sstream>

#include "../support/catch.hpp"
#include "models/all.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;
using router_test::inf;
using router_test::qnan;
using router_test::row_type;
using ids_type = std::vector<std::int32_t>;

namespace {

/// The name of a policy, without its namespaces and template arguments.
template <class Step>
std::string name_of() {
  std::string name = __PRETTY_FUNCTION__;
  name = name.substr(name.find("Step = ") + 7);
  name = name.substr(0, name.find_first_of(";]<"));
  return name.substr(name.rfind("::") + 2);
}
template <class... Steps>
std::string policies_of(expar::router<Steps...> const&) {
  std::string all;
  ((all += (all.empty() ? "" : ", ") + name_of<Steps>()), ...);
  return all;
}

std::string text_of(std::string const& file) {
  std::ifstream in(std::string(EXPAR_SOURCE_DIR) + "/include/expar/router/" + file);
  std::stringstream text;
  text << in.rdbuf();
  REQUIRE_FALSE(text.str().empty());
  return text.str();
}

using row_of_table = std::pair<std::string, std::string>;

std::set<row_of_table> rows_of_the_code() {
  std::set<row_of_table> rows;
  model_list::for_each(2, [&](char const* name, auto const& r) {
    std::string steps = policies_of(r);
    if (std::string const noise = "add_rows"; steps.compare(0, noise.size(), noise) == 0)
      steps = "_transform_" + steps.substr(noise.size());
    rows.emplace(name, steps);
  });
  return rows;
}

/// What stands in backquotes in a line, or nothing if there are fewer than `parts` of them.
std::vector<std::string> quoted(std::string const& line, std::size_t parts) {
  std::vector<std::string> found;
  for (std::size_t from = line.find('`'); from != std::string::npos;) {
    std::size_t const to = line.find('`', from + 1);
    if (to == std::string::npos) return {};
    found.push_back(line.substr(from + 1, to - from - 1));
    from = line.find('`', to + 1);
  }
  return found.size() < parts ? std::vector<std::string>{} : found;
}

/// The names of the functions that a header defines: what stands before the first parenthesis of
/// lines that begin with constexpr.
std::set<std::string> functions_of(std::string const& file) {
  std::istringstream text(text_of(file));
  std::set<std::string> names;
  for (std::string line; std::getline(text, line);)
    if (line.compare(0, 10, "constexpr ") == 0) {
      std::string const head = line.substr(0, line.find('('));
      names.insert(head.substr(head.rfind(' ') + 1));
    }
  return names;
}

template <class Router>
auto routes_of(Router const& unbound, row_type const& z, row_type const& bias) {
  auto const r = expar::detail::bind(unbound, 0);
  struct {
    ids_type ids;
    row_type weights;
  } out{ids_type(static_cast<std::size_t>(r.top_k), 77),
        row_type(static_cast<std::size_t>(r.top_k), 77)};
  row_type scratch(static_cast<std::size_t>(unbound.forward_scratch()) + 1, 77);
  r.forward(z.data(), r.takes_bias ? bias.data() : nullptr, scratch.data(), out.ids.data(),
            out.weights.data());
  REQUIRE(scratch.back() == 77);
  return out;
}

/// The weights of experts that are already chosen.
template <class Router>
row_type weights_of(Router const& unbound, row_type const& z, ids_type const& ids) {
  auto const r = expar::detail::bind(unbound, 0);
  row_type x(z.size()), s(z.size()), w;
  r.transform(z.data(), x.data());
  r.score()(x.data(), s.data(), r.experts);
  for (auto const id : ids) w.push_back(id < 0 ? 0 : s[static_cast<std::size_t>(id)]);
  r.weigh(ids.data(), w.data());
  return w;
}

template <class Router>
constexpr bool chooses_by_logits = true;
template <class... Steps>
constexpr bool chooses_by_logits<expar::router<Steps...>> =
    !(std::is_same_v<Steps, expar::given_ids> || ...) &&
    !(std::is_same_v<Steps, expar::table_ids> || ...) &&
    !(std::is_same_v<Steps, expar::round_robin> || ...);
template <class Router>
constexpr bool differentiable = true;
template <class... Steps>
constexpr bool differentiable<expar::router<Steps...>> =
    !(std::is_same_v<Steps, expar::equal_weights> || ...);

row_type some_bias(router_test::random& rng) {
  row_type bias;
  for (int e = 0; e < 8; ++e) bias.push_back(rng.normal() / 4);
  return bias;
}

}  // namespace

TEST_CASE("every router of expar::models is in the table, with its policies", "[router][models]") {
  std::string const text = text_of("models.md");
  std::set<row_of_table> table;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line == "## What is not made of policies (`models/others.hpp`)") break;
    if (line.compare(0, 2, "| ") != 0 || line.find('`') == std::string::npos) continue;
    std::vector<std::string> const parts = quoted(line, 2);
    CAPTURE(line);
    REQUIRE(parts.size() >= 2);
    REQUIRE(table.emplace(parts[parts.size() - 2], parts.back()).second);
  }
  std::set<row_of_table> const code = rows_of_the_code();
  for (auto const& row : code) {
    CAPTURE(row.first, row.second);
    REQUIRE(table.count(row) == 1);
  }
  REQUIRE(table.size() == code.size());
}

TEST_CASE("every function of expar::models is a router of the list", "[router][models]") {
  std::set<std::string> listed, written;
  for (auto const& row : rows_of_the_code()) listed.insert(row.first);
  for (char const* file : {"classical", "research", "selected", "sigmoid", "softmax", "systems"})
    for (std::string const& name : functions_of(std::string("models/") + file + ".hpp"))
      written.insert(name);
  written.erase("megatron_groups");  // a part of some
  REQUIRE(listed == written);
  // Those that are not made of policies are in the table by name.
  std::string const table = text_of("models.md");
  std::set<std::string> const others = functions_of("models/others.hpp");
  REQUIRE(others.size() == 5);
  for (std::string const& name : others) {
    CAPTURE(name);
    REQUIRE(table.find("`" + name + "`") != std::string::npos);
  }
}

TEST_CASE("gradients of every router agree with differences", "[router][models]") {
  router_test::random rng(23);
  for (int const k : {1, 2, 4, 8})
    model_list::for_each(k, [&](char const* name, auto const& r) {
      if constexpr (differentiable<std::remove_cvref_t<decltype(r)>>)
        for (int round = 0; round < 12; ++round) {
          row_type z = router_test::random_row(rng, 8), dw;
          for (double& x : z)
            if (x == inf) x = 1;
          auto const ids = routes_of(r, z, some_bias(rng)).ids;
          for (int j = 0; j < r.top_k; ++j) dw.push_back(rng.normal());
          auto const loss = [&](row_type const& at) {
            row_type const w = weights_of(r, at, ids);
            return std::inner_product(w.begin(), w.end(), dw.begin(), 0.);
          };
          row_type dz(8, 77), scratch(static_cast<std::size_t>(r.vjp_scratch()) + 1, 77);
          expar::detail::bind(r, 0).vjp(z.data(), ids.data(), dw.data(), scratch.data(), dz.data());
          REQUIRE(scratch.back() == 77);
          CAPTURE(name, k, round, z, ids, dw);
          for (std::size_t e = 0; e < 8; ++e) {
            row_type up = z, down = z;
            up[e] += 1e-5, down[e] -= 1e-5;
            REQUIRE_THAT(dz[e], WithinAbs((loss(up) - loss(down)) / 2e-5, 2e-7));
            if (!(z[e] > -inf)) REQUIRE(dz[e] == 0);
          }
        }
    });
}

TEST_CASE("no router selects an expert twice, or one that is masked", "[router][models]") {
  router_test::random rng(29);
  for (int const k : {1, 2, 4, 8})
    model_list::for_each(k, [&](char const* name, auto const& r) {
      if constexpr (chooses_by_logits<std::remove_cvref_t<decltype(r)>>)
        for (int round = 0; round < 30; ++round) {
          row_type const z = router_test::random_row(rng, 8);
          auto const got = routes_of(r, z, some_bias(rng));
          CAPTURE(name, k, round, z, got.ids, got.weights);
          std::set<std::int32_t> seen;
          for (std::size_t j = 0; j < got.ids.size(); ++j) {
            std::int32_t const id = got.ids[j];
            REQUIRE(id >= -1);
            REQUIRE(id < 8);
            if (id < 0) {
              REQUIRE(got.weights[j] == 0);
              continue;
            }
            REQUIRE(z[static_cast<std::size_t>(id)] > -inf);
            REQUIRE(seen.insert(id).second);
            REQUIRE_FALSE(std::isnan(got.weights[j]));
          }
        }
    });
}

TEST_CASE("a row where everything is masked has no routes in any router", "[router][models]") {
  router_test::random rng(31);
  for (double const z : {qnan, -inf})
    model_list::for_each(4, [&](char const* name, auto const& r) {
      if constexpr (chooses_by_logits<std::remove_cvref_t<decltype(r)>>) {
        CAPTURE(name, z);
        auto const got = routes_of(r, row_type(8, z), some_bias(rng));
        REQUIRE(got.ids == ids_type(got.ids.size(), -1));
        REQUIRE(got.weights == row_type(got.ids.size(), 0));
      }
    });
}
