// SPDX-License-Identifier: Apache-2.0
#include "../examples/digits/demo.hpp"

#include <algorithm>
#include <cmath>
#include <set>

#include <expar/comm/self.hpp>
#include <expar/comm/thread.hpp>

#include "support/catch.hpp"
#include "support/random.hpp"

namespace {

using counts_type = std::vector<expar::index_t>;

int occurrences(std::string const& text, std::string const& part) {
  int n = 0;
  for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

/// What is left of two epochs on some ranks: the checksum, and the bits of the loss.
struct trace {
  std::uint64_t weights;
  double loss;
  friend bool operator==(trace const&, trace const&) = default;
};

template <class Comm>
trace train_shortly(Comm& comm, std::uint64_t seed) {
  digits::network net(comm, seed);
  auto images = digits::train_split();
  images.resize(333);
  net.learn(images, 0, .01f);
  double const loss = net.learn(images, 1, .01f);
  return {net.weights_checksum(), loss};
}

digits::options parse(std::vector<char const*> words, bool with_ranks = true) {
  words.insert(words.begin(), "expar_demo");
  return digits::parse_options(static_cast<int>(words.size()), words.data(), with_ranks);
}

}  // namespace

TEST_CASE("digits: the images are all there, and split without overlap") {
  std::set<int> seen;
  std::vector<int> per_class(10);
  for (auto const& part : {digits::train_split(), digits::test_split()})
    for (int image : part) {
      seen.insert(image);
      ++per_class.at(static_cast<std::size_t>(digits::label(image)));
    }
  REQUIRE(digits::train_split().size() == 1500);
  REQUIRE(seen.size() == 1797);
  REQUIRE(per_class == std::vector<int>{178, 182, 177, 183, 181, 182, 181, 179, 174, 180});
  int most = 0;
  for (int image : seen)
    for (int p = 0; p < digits::pixels; ++p) {
      REQUIRE(digits::ink(image, p) >= 0);
      most = std::max(most, digits::ink(image, p));
    }
  REQUIRE(most == 16);
}

TEST_CASE("digits: an image that is not bent is drawn as it is") {
  float straight[digits::pixels], moved[digits::pixels];
  digits::draw(7, {}, straight);
  digits::draw(7, {{1, 0}, {}}, moved);
  for (int p = 0; p < digits::pixels; ++p) {
    REQUIRE(straight[p] == static_cast<float>(digits::ink(7, p)) / 8 - .625f);
    REQUIRE(moved[p] == (p % 8 == 7 ? -.625f : straight[p + 1]));
  }
}

TEST_CASE("digits: a dense layer has the gradient of what it computes") {
  expar_test::random rng(1);
  digits::dense<5, 8> layer;
  float x[5], dy[8], y[8], other[8];
  for (float& w : digits::numbers(layer)) w = static_cast<float>(rng.normal());
  for (float& v : x) v = static_cast<float>(rng.normal());
  for (float& v : dy) v = static_cast<float>(rng.normal());
  auto const loss = [&](float const* out) {
    double sum = 0;
    for (int o = 0; o < 8; ++o) sum += static_cast<double>(out[o]) * static_cast<double>(dy[o]);
    return sum;
  };
  layer.forward(x, y);
  float dx[5] = {};
  layer.backward(dy, dx);
  digits::dense<5, 8> gradient{};
  gradient.accumulate(x, dy);

  constexpr float step = 1.f / 64;
  for (int i = 0; i < 5; ++i) {
    float const kept = x[i];
    x[i] += step;
    layer.forward(x, other);
    x[i] = kept;
    REQUIRE_THAT((loss(other) - loss(y)) / double{step},
                 Catch::Matchers::WithinAbs(static_cast<double>(dx[i]), 1e-3));
  }
  auto const weights = digits::numbers(layer), gradients = digits::numbers(gradient);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    float const kept = weights[i];
    weights[i] += step;
    layer.forward(x, other);
    weights[i] = kept;
    REQUIRE_THAT((loss(other) - loss(y)) / double{step},
                 Catch::Matchers::WithinAbs(static_cast<double>(gradients[i]), 1e-3));
  }
}

TEST_CASE("digits: the checksum is FNV-1a") {
  digits::checksum sum;
  REQUIRE(sum.value() == 0xcbf29ce484222325u);
  sum.add(std::vector<float>{__builtin_bit_cast(float, 0x72616f66u)});  // the bytes "foar"
  std::uint64_t wanted = 0xcbf29ce484222325u;
  for (char c : {'f', 'o', 'a', 'r'})
    wanted = (wanted ^ static_cast<unsigned char>(c)) * 1099511628211u;
  REQUIRE(sum.value() == wanted);
}

TEST_CASE("digits: training gives the same bits for any number of ranks") {
  expar::self_communicator alone;
  trace const wanted = train_shortly(alone, 5);
  REQUIRE(wanted.weights != train_shortly(alone, 6).weights);
  for (int ranks : {1, 2, 3, 4, 8}) {
    std::vector<trace> traces(static_cast<std::size_t>(ranks));
    expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
      traces[static_cast<std::size_t>(comm.rank())] = train_shortly(comm, 5);
    });
    CAPTURE(ranks);
    REQUIRE(traces == std::vector<trace>(traces.size(), wanted));
  }
}

TEST_CASE("digits: a few epochs are enough to read most digits") {
  expar::self_communicator comm;
  digits::network net(comm, 3);
  for (int epoch = 0; epoch < 12; ++epoch) net.learn(digits::train_split(), epoch, .006f);
  REQUIRE(digits::accuracy(net.look(digits::test_split())) > .9);
}

TEST_CASE("digits: more ranks than experts are refused in a sentence") {
  REQUIRE_THROWS_WITH(
      expar::run_ranks(
          9, [](expar::thread_communicator& comm) { digits::network const net(comm, 1); }),
      Catch::Matchers::Equals("expar: expert_parallel: experts is 8, fewer than the 9 ranks; every "
                              "rank needs one of its own"));
}

TEST_CASE("digits: options") {
  REQUIRE(parse({}).ranks == 4);
  REQUIRE_FALSE(parse({}).help);
  REQUIRE(parse({"--help"}).help);
  auto const o = parse({"--ranks", "3", "--seed", "0", "--epochs", "9", "--report", "x.html"});
  REQUIRE(o.ranks == 3);
  REQUIRE(o.seed == 0);
  REQUIRE(o.epochs == 9);
  REQUIRE(o.report == "x.html");
  REQUIRE_THROWS_WITH(parse({"--rank"}), Catch::Matchers::Equals("there is no option --rank"));
  REQUIRE_THROWS_WITH(parse({"--ranks", "2"}, false),
                      Catch::Matchers::Equals("there is no option --ranks"));
  REQUIRE_THROWS_WITH(parse({"--seed"}), Catch::Matchers::Equals("--seed needs a value"));
  for (char const* bad : {"", "0", "-1", "2x", "x", "99999999999"})
    REQUIRE_THROWS_WITH(parse({"--ranks", bad}),
                        Catch::Matchers::Equals(std::string("--ranks is '") + bad +
                                                "'; it is a whole number of at least 1"));
}

TEST_CASE("digits: the report is one page without references to others") {
  expar::self_communicator comm;
  digits::network net(comm, 1);
  digits::outcome r;
  r.transport = "threads", r.ranks = 1, r.seed = 1, r.training_seconds = 1, r.checksum = 0xabc;
  r.losses = {2, 1}, r.accuracies = {.5, .8};
  r.train_sights = net.look(digits::train_split());
  r.before = r.after = net.report();
  r.capped = net.report_with_capacity(1.0);
  r.test_sights = net.look(digits::test_split());
  auto const page = digits::page(r);
  for (char const* part : {"<!doctype html>", "80.00%", "0000000000000abc", "CC BY 4.0", "digit 9"})
    REQUIRE(page.find(part) != std::string::npos);
  for (char const* part : {"nan", "src=", "href=", "inf%"})
    REQUIRE(page.find(part) == std::string::npos);
  REQUIRE(page.find("</main></html>") != std::string::npos);
}

TEST_CASE("digits: a line of progress fits 80 columns, and covers the one before it") {
  auto const width = [](std::string const& line) {  // no character begins with 10 in binary
    return std::count_if(line.begin(), line.end(), [](char c) { return (c & 0xc0) != 0x80; });
  };
  for (int epochs : {1, 7, 40, 400, 1000}) {
    digits::progress const live(epochs, true), printed(epochs, false);
    auto const first = width(live.line(1, 2.302585, .1, .04));
    CHECK(first <= 80);
    for (int done = 1; done <= epochs; done += 1 + epochs / 50) {
      CAPTURE(epochs, done);
      CHECK(width(live.line(done, 2.3 / done, done / 1001., done * 7.77)) == first);
      CHECK(width(printed.line(done, 2.3 / done, done / 1001., done * 7.77)) <= 80);
    }
  }
  CHECK(digits::progress(40, false).line(40, .01234, .97, 12.34) ==
        "epoch 40/40  loss 0.0123  test accuracy  97.00%    12.3 s");
}

TEST_CASE("load_bars_svg draws a bar per expert and the mean") {
  auto const svg = digits::load_bars_svg(counts_type{30, 10});
  REQUIRE_THAT(svg, Catch::Matchers::StartsWith(
                        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 400 72\""));
  REQUIRE(occurrences(svg, "class=\"bar\"") == 2);
  REQUIRE(occurrences(svg, "width=\"230.0\"") == 1);
  REQUIRE(occurrences(svg, "width=\"76.7\"") == 1);
  REQUIRE(occurrences(svg, ">30 (1.50x)</text>") == 1);
  REQUIRE(occurrences(svg, "M223.3 0V56") == 1);
  REQUIRE(occurrences(svg, "<text") == occurrences(svg, "</text>"));
  REQUIRE(occurrences(digits::load_bars_svg(counts_type{30, 10}, 20), "width=\"230.0\"") == 1);
}

TEST_CASE("heat_map_svg draws a cell per count") {
  auto const svg = digits::heat_map_svg(counts_type{6, 0, 1, 2, 3, 4}, 3, "digit", "expert");
  REQUIRE(occurrences(svg, "<rect") == 6);
  REQUIRE(occurrences(svg, ">expert 2</text>") == 1);
  REQUIRE(occurrences(svg, ">digit 1</text>") == 1);
  REQUIRE(occurrences(svg, ">digit 2</text>") == 0);
  REQUIRE(occurrences(svg, "fill=\"rgb(33,83,149)\"") == 1);
  REQUIRE(occurrences(svg, "fill=\"rgb(238,243,249)\"") == 1);
  REQUIRE_THAT(svg.substr(svg.size() - 8), Catch::Matchers::Equals("\n</svg>\n"));
  REQUIRE(occurrences(digits::heat_map_svg(counts_type{}, 0, "", ""), "<rect") == 0);
}

TEST_CASE("traffic_svg names senders and receivers") {
  expar::routing_report r;
  r.ranks = 2;
  r.traffic = {1, 2, 3, 4};
  auto const svg = digits::traffic_svg(r);
  REQUIRE(occurrences(svg, ">from 1</text>") == 1);
  REQUIRE(occurrences(svg, ">to 1</text>") == 1);
}
