// SPDX-License-Identifier: Apache-2.0
#include "../examples/digits/demo.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
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
trace train_shortly(Comm& comm, std::uint64_t seed, expar::placement const& place) {
  digits::network net(comm, seed, place);
  auto images = digits::train_split();
  images.resize(333);
  net.learn(images, 0, .01f);
  double const loss = net.learn(images, 1, .01f);
  return {net.weights_checksum(), loss};
}

/// The same on threads, which all have the same trace.
trace train_shortly(std::uint64_t seed, expar::placement const& place) {
  std::vector<trace> traces(static_cast<std::size_t>(place.ranks()));
  expar::run_ranks(place.ranks(), [&](expar::thread_communicator& comm) {
    traces[static_cast<std::size_t>(comm.rank())] = train_shortly(comm, seed, place);
  });
  REQUIRE(traces == std::vector<trace>(traces.size(), traces[0]));
  return traces[0];
}

/// The same with a fault in the second step, of the ranks that go on, and what they heard of it.
struct faulty_traces {
  std::vector<trace> traces;
  std::vector<digits::fault> faults;
};
faulty_traces train_shortly(std::uint64_t seed, expar::placement const& place,
                            digits::fault const& planned) {
  struct left {};
  std::vector<trace> traces(static_cast<std::size_t>(place.ranks()));
  std::vector<digits::fault> faults(traces.size());
  auto images = digits::train_split();
  images.resize(333);
  expar::run_ranks(place.ranks(), [&](expar::thread_communicator& comm) {
    digits::network net(comm, seed, place);
    digits::training taught(net, planned, [] { throw left(); });
    try {
      taught.learn(images, 0, .01f);
      double const loss = taught.learn(images, 1, .01f);
      auto const rank = static_cast<std::size_t>(comm.rank());
      traces[rank] = {net.weights_checksum(), loss};
      faults[rank] = taught.happened();
    } catch (left const&) {
    }
  });
  if (planned.kills) {
    traces.erase(traces.begin() + planned.rank);
    faults.erase(faults.begin() + planned.rank);
  }
  return {traces, faults};
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
  digits::dense_sum<5, 8> sum{};
  sum.add(x, dy);

  constexpr float step = 1.f / 64;
  for (int i = 0; i < 5; ++i) {
    float const kept = x[i];
    x[i] += step;
    layer.forward(x, other);
    x[i] = kept;
    REQUIRE_THAT((loss(other) - loss(y)) / double{step},
                 Catch::Matchers::WithinAbs(static_cast<double>(dx[i]), 1e-3));
  }
  auto const weights = digits::numbers(layer);
  auto const gradients = digits::numbers<std::int64_t>(sum);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    float const kept = weights[i];
    weights[i] += step;
    layer.forward(x, other);
    weights[i] = kept;
    REQUIRE_THAT((loss(other) - loss(y)) / double{step},
                 Catch::Matchers::WithinAbs(digits::from_grid(gradients[i]), 1e-3));
  }
}

TEST_CASE("digits: numbers are rounded to a grid on which sums have no order") {
  REQUIRE(digits::on_grid(0x1p-40f) == 1);
  REQUIRE(digits::on_grid(-0x1.8p-40f) == -2);  // to even
  REQUIRE(digits::on_grid(0x1.4p-40f) == 1);
  REQUIRE(digits::on_grid(0x1p-42f) == 0);
  REQUIRE(digits::on_grid(-0x1.fffffep10f) == -(std::int64_t{0xffffff} << 27));
  expar_test::random rng(2);
  for (int i = 0; i < 1000; ++i) {
    auto const v = static_cast<float>(rng.normal() * std::exp2(8 * rng.normal() / 3));
    if (std::fabs(v) >= 2048) continue;
    REQUIRE(static_cast<double>(digits::on_grid(v)) ==
            std::nearbyint(static_cast<double>(v) * 0x1p40));
    REQUIRE_THAT(digits::from_grid(digits::on_grid(v)),
                 Catch::Matchers::WithinAbs(static_cast<double>(v), 0x1p-41));
  }
}

TEST_CASE("digits: the shards of an expert add up to it") {
  digits::expert const all = digits::initial_expert(3, 1);
  float x[digits::width], wanted[digits::width], y[digits::width];
  for (int i = 0; i < digits::width; ++i) x[i] = static_cast<float>(i % 5) - 2;
  all.forward(x, wanted);
  for (int shards : {1, 2, 3, 64}) {
    float sum[digits::width] = {};
    for (int shard = 0; shard < shards; ++shard) {
      digits::shard_of(all, shard, shards).forward(x, y);
      for (int i = 0; i < digits::width; ++i) {
        REQUIRE((y[i] == 0 || sum[i] == 0));
        sum[i] += y[i];
      }
    }
    CAPTURE(shards);
    for (int i = 0; i < digits::width; ++i) REQUIRE(sum[i] == wanted[i]);
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

TEST_CASE("digits: training gives the same bits for any number of ranks and of copies") {
  using expar::placement;
  expar::self_communicator alone;
  trace const wanted = train_shortly(alone, 5, placement::blocks(8, 1));
  REQUIRE(wanted.weights != train_shortly(alone, 6, placement::blocks(8, 1)).weights);
  for (int ranks : {1, 2, 3, 4, 8}) {
    CAPTURE(ranks);
    REQUIRE(train_shortly(5, placement::blocks(8, ranks)) == wanted);
  }
  for (int copies : {2, 3}) {
    CAPTURE(copies);
    REQUIRE(train_shortly(5, placement::replicated(8, 3, copies)) == wanted);
  }
  REQUIRE(train_shortly(5, placement::replicated(8, 4, 2).nearest(2)) == wanted);
  REQUIRE(train_shortly(5, placement::whole(8, 3)) == wanted);
  REQUIRE(train_shortly(5, placement::table(8, {{0, 1, 2, 3, 4}, {}, {4, 5, 6, 7, 4}})) == wanted);
}

TEST_CASE("digits: experts in shards have the same bits wherever the shards are") {
  using expar::placement;
  trace const whole = train_shortly(5, placement::blocks(8, 1));
  trace const wanted = train_shortly(5, placement::sharded(8, 1, 2));
  REQUIRE_THAT(wanted.loss, Catch::Matchers::WithinRel(whole.loss, 1e-3));
  REQUIRE(wanted.loss != whole.loss);
  for (int ranks : {3, 9, 16}) {
    CAPTURE(ranks);
    REQUIRE(train_shortly(5, placement::sharded(8, ranks, 2)) == wanted);
  }
}

TEST_CASE("digits: a rank that leaves a combine out, and a lost one with copies, change no bit") {
  using expar::placement;
  trace const wanted = train_shortly(5, placement::blocks(8, 1));
  for (auto const& place : {placement::blocks(8, 4), placement::replicated(8, 4, 2)})
    for (bool kills : {false, true}) {
      if (kills && place.copies(0) == 1) continue;
      CAPTURE(kills, place.copies(0));
      auto const [traces, faults] = train_shortly(5, place, {.rank = 2, .kills = kills, .step = 1});
      REQUIRE(traces == std::vector<trace>(kills ? 3 : 4, wanted));
      for (auto const& f : faults) {
        REQUIRE(f.heard.size() == traces.size());
        for (std::size_t r = 0; r < f.heard.size(); ++r) {
          REQUIRE(f.heard[r].rank == static_cast<int>(kills && r > 1 ? r + 1 : r));
          if (!kills)
            REQUIRE(f.heard[r].sentence ==
                    std::string("expar: rank 0 calls combine for its batch 2 while rank 2 calls "
                                "prepare; all ranks call the same operations in the same order"));
        }
      }
    }
}

TEST_CASE("digits: the ranks that go on without experts agree, and say which are lost") {
  using expar::placement;
  auto const [traces, faults] =
      train_shortly(5, placement::blocks(8, 4), {.rank = 0, .kills = true, .step = 1});
  REQUIRE(traces == std::vector<trace>(3, traces[0]));
  REQUIRE(digits::lost_experts(placement::blocks(8, 4).without(0)) == "experts 0, 1");
  REQUIRE(digits::lost_experts(placement::sharded(8, 16, 2).without(5)) == "expert 2");
  REQUIRE(digits::lost_experts(placement::replicated(8, 4, 2).without(0)).empty());
  auto const shards = train_shortly(5, placement::sharded(8, 16, 2), {.rank = 5, .kills = true});
  REQUIRE(shards.traces == std::vector<trace>(15, shards.traces[0]));
}

TEST_CASE("digits: a few epochs are enough to read most digits") {
  expar::self_communicator comm;
  digits::network net(comm, 3);
  for (int epoch = 0; epoch < 12; ++epoch) net.learn(digits::train_split(), epoch, .006f);
  REQUIRE(digits::accuracy(net.look(digits::test_split())) > .9);
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

TEST_CASE("digits: options that do not fit each other are refused in a sentence") {
  using Catch::Matchers::Equals;
  REQUIRE_THROWS_WITH(
      parse({"--replicas", "2", "--whole"}),
      Equals("--replicas and --whole are two ways to place the experts; choose one"));
  for (auto const& words : {std::vector<char const*>{"--whole"}, {"--replicas", "2"}}) {
    auto all = words;
    all.insert(all.end(), {"--device", "cuda"});
    REQUIRE_THROWS_WITH(
        parse(all),
        Equals("--device cuda has one copy of every expert: no --replicas, no --whole"));
  }
  REQUIRE_THROWS_WITH(parse({"--skip", "1", "--kill", "1"}),
                      Equals("--skip and --kill are two faults; choose one"));
  REQUIRE_THROWS_WITH(parse({"--kill", "1", "--device", "cuda"}),
                      Equals("--device cuda has no ranks that fail: no --skip, no --kill"));
  REQUIRE_THROWS_WITH(digits::fault_of(parse({"--kill", "4"}), 4),
                      Equals("--kill is 4; the ranks are 0 to 3"));
  REQUIRE_THROWS_WITH(digits::fault_of(parse({"--skip", "0"}), 1),
                      Equals("--skip needs at least 2 ranks"));
  REQUIRE_THROWS_WITH(
      parse({"--device", "cuda", "--ranks", "9"}),
      Equals("--ranks is 9; with --device cuda at most 8, the experts, are possible"));
  REQUIRE_THROWS_WITH(digits::placement_of(parse({"--replicas", "5"}, false), 4),
                      Equals("--replicas is 5; the copies of an expert are on different ranks, of "
                             "which there are 4"));
  REQUIRE_THROWS_WITH(
      digits::placement_of({}, 513),
      Equals("there are 513 ranks; at most 512 can share the outputs of the experts"));
}

TEST_CASE("digits: options say where the experts are") {
  using expar::placement;
  auto const placed = [](std::vector<char const*> words, int ranks) {
    return digits::placement_of(parse(std::move(words), false), ranks);
  };
  REQUIRE(placed({}, 4) == placement::blocks(8, 4));
  REQUIRE(placed({"--replicas", "2"}, 4) == placement::replicated(8, 4, 2));
  REQUIRE(placed({"--replicas", "2"}, 16) == placement::replicated(8, 16, 2));
  REQUIRE(placed({"--whole"}, 3) == placement::whole(8, 3));
  REQUIRE(placed({}, 16) == placement::sharded(8, 16, 2));
  REQUIRE(placed({}, 17) == placement::sharded(8, 17, 3));
  REQUIRE(placed({}, 512) == placement::sharded(8, 512, 64));

  REQUIRE(digits::placement_text(placed({}, 1)) == "8 experts on 1 rank");
  REQUIRE(digits::placement_text(placed({"--whole"}, 1)) == "8 experts on 1 rank");
  REQUIRE(digits::placement_text(placed({}, 4)) == "8 experts on 4 ranks");
  REQUIRE(digits::placement_text(placed({"--replicas", "3"}, 4)) ==
          "8 experts on 4 ranks, 3 copies of each");
  REQUIRE(digits::placement_text(placed({"--whole"}, 4)) ==
          "8 experts on 4 ranks, all of them on each");
  REQUIRE(digits::placement_text(placed({}, 16)) == "8 experts on 16 ranks, each in 2 shards");
  REQUIRE(digits::placement_text(placed({}, 4).without(1)) ==
          "8 experts on 3 ranks, without experts 2, 3");
  REQUIRE(digits::placement_text(placed({"--replicas", "2"}, 4).without(1)) ==
          "8 experts on 3 ranks, up to 2 copies of each");
}

TEST_CASE("digits: the report is one page without references to others") {
  expar::self_communicator comm;
  digits::network net(comm, 1);
  digits::outcome r;
  r.transport = "threads", r.seed = 1, r.training_seconds = 1, r.checksum = 0xabc;
  r.losses = {2, 1}, r.accuracies = {.5, .8};
  r.train_sights = net.look(digits::train_split());
  r.before = r.after = net.report();
  r.capped = net.report_with_capacity(1.0);
  r.test_sights = net.look(digits::test_split());
  auto const page = digits::page(r);
  for (char const* part : {"<!doctype html>", "80.00%", "0000000000000abc", "CC BY 4.0", "digit 9",
                           "8 experts on 1 rank,", "class=\"rank\""})
    REQUIRE(page.find(part) != std::string::npos);
  for (char const* part : {"nan", "src=", "href=", "inf%"})
    REQUIRE(page.find(part) == std::string::npos);
  REQUIRE(page.find("</main></html>") != std::string::npos);
  REQUIRE(page.find("A rank is lost") == std::string::npos);

  r.happened = {.rank = 0, .kills = true, .step = 22};
  r.happened.heard = {{1, 2.5, "expar: combine"}};
  auto const faulty = digits::page(r);
  for (char const* part : {"A rank is lost", "epoch 2, batch 8: rank 0 ends", "stroke=\"#c2452d\"",
                           "Rank 1 hears, 2.5 ms after its experts: <code>expar: combine</code>"})
    REQUIRE(faulty.find(part) != std::string::npos);
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
  auto const lost =
      digits::load_bars_svg(counts_type{30, 10}, 0, expar::placement::blocks(2, 2).without(1));
  REQUIRE(occurrences(lost, "class=\"lost\"") == 1);
  REQUIRE(occurrences(lost, ">10 (dropped)</text>") == 1);
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

TEST_CASE("placement_svg draws a box per rank with a cell per slot, and nothing outside") {
  for (auto const& place :
       {expar::placement::blocks(8, 1), expar::placement::blocks(8, 4),
        expar::placement::blocks(2, 3), expar::placement::sharded(8, 16, 2),
        expar::placement::whole(8, 16), expar::placement::replicated(9, 2, 2)}) {
    auto const slots = static_cast<std::size_t>(place.slot_count());
    counts_type counts(slots);
    for (std::size_t slot = 0; slot < slots; ++slot)
      counts[slot] = static_cast<expar::index_t>(slot);
    auto const svg = digits::placement_svg(place, counts);
    CAPTURE(place.ranks(), place.slot_count());
    REQUIRE(occurrences(svg, "class=\"rank\"") == place.ranks());
    REQUIRE(occurrences(svg, "rx=\"4\"") == place.slot_count());
    for (int slot = 0; slot < place.slot_count(); ++slot)
      REQUIRE(occurrences(svg, ">" + expar::slot_name(place, slot) + "</text>") >= 1);
    int wide = 0, high = 0, drawn = 0;
    REQUIRE(std::sscanf(svg.c_str() + svg.find("viewBox"), "viewBox=\"0 0 %d %d\"", &wide, &high) ==
            2);
    REQUIRE(wide <= 480);
    for (auto at = svg.find(" x=\""); at != std::string::npos; at = svg.find(" x=\"", at + 1)) {
      int x = 0, y = 0, w = 0, h = 0;
      if (std::sscanf(svg.c_str() + at, " x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\"", &x, &y, &w,
                      &h) != 4)
        continue;
      ++drawn;
      REQUIRE((x >= 0 && y >= 0 && x + w <= wide && y + h <= high));
    }
    REQUIRE(drawn == place.ranks() + place.slot_count());
  }
  auto const svg = digits::placement_svg(expar::placement::sharded(1, 2, 2), counts_type{7, 3});
  REQUIRE(occurrences(svg, ">0/1</text>") == 1);
  REQUIRE(occurrences(svg, "fill=\"rgb(33,83,149)\"") == 1);
  REQUIRE(occurrences(svg, ">7</text>") == 1);
}
