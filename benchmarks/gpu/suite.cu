// SPDX-License-Identifier: Apache-2.0
#include "suite.hpp"

#include <cmath>
#include <cstdio>

#include "streams.cuh"

namespace bench {
namespace {

constexpr char copy_name[] = "copy of the same bytes";

/// A number that depends on every bit and its place, and not on the order of the threads.
__global__ void fingerprint(unsigned char const* data, std::size_t n, unsigned long long* sum) {
  std::size_t const step = std::size_t{gridDim.x} * blockDim.x;
  unsigned long long mine = 0;
  for (std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x; i * 4 < n; i += step) {
    unsigned word = 0;
    for (std::size_t b = 0; b < 4 && i * 4 + b < n; ++b)
      word |= static_cast<unsigned>(data[i * 4 + b]) << (8 * b);
    unsigned long long z = (i << 32 ^ word) + 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    mine += z ^ (z >> 31);
  }
  atomicAdd(sum, mine);
}

__global__ void noise(unsigned long long* to, std::int64_t n) {
  std::int64_t const step = std::int64_t{gridDim.x} * blockDim.x;
  for (auto i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += step) {
    auto const z = static_cast<unsigned long long>(i + 1) * 0x9e3779b97f4a7c15u;
    to[i] = (z ^ (z >> 31)) * 0x94d049bb133111ebu;
  }
}

double free_bytes() {
  std::size_t left = 0, all = 0;
  ok(cudaMemGetInfo(&left, &all), "cudaMemGetInfo");
  return static_cast<double>(left);
}

}  // namespace

suite::suite(options const& o, cudaDeviceProp const& device, publisher publish)
    : options_(o),
      publish_(std::move(publish)),
      context_(stream_),
      l2_bytes_(device.l2CacheSize),
      cold_bytes_(std::max(256e6, 4 * l2_bytes_)) {
  if (o.quick) protocol_ = {7, 20, 1000, 20};
  double const most = o.check ? 1 << 20 : std::min(4. * (1ull << 30), free_bytes() / 8);
  auto const n = static_cast<std::int64_t>(most) / 4096 * 4096;
  from_ = array<unsigned char>(n), to_ = array<unsigned char>(n);
  noise<<<4096, 256, 0, stream()>>>(reinterpret_cast<unsigned long long*>(from_.data()), n / 8);
  ok(cudaGetLastError(), "a launch");
}

bool suite::wants(std::string const& op, problem const& p) const {
  std::string const name = op + "/" + p.name + "/" + name_of(p.ids_drawn);
  return name.find(options_.filter) != std::string::npos;
}

bool suite::fits(std::string const& what, double bytes) {
  if (bytes * 1.05 < free_bytes()) return true;
  note(what + " left out: it needs " + std::to_string(std::lround(bytes / 1e6)) + " MB");
  return false;
}

void suite::note(std::string text) {
  if (std::find(notes_.begin(), notes_.end(), text) == notes_.end())
    notes_.push_back(std::move(text));
}
void suite::fail(std::string const& what) {
  ++failed_;
  std::printf("WRONG: %s\n", what.c_str());
}

std::vector<int> suite::sets_for(double set_bytes) const {
  if (options_.check) return {2};
  double const sets = std::ceil(cold_bytes_ / set_bytes);
  if (sets > 64) return {1};
  return set_bytes < l2_bytes_ / 2 ? std::vector{static_cast<int>(sets), 1}
                                   : std::vector{static_cast<int>(sets)};
}

variant suite::limit(std::string name, double bytes, int k, bool out) {
  auto const one = static_cast<std::int64_t>(bytes / (1 + k)) / 16 * 16;
  if (one == 0 || one * k > from_.size()) return {};
  auto const most = from_.size() / (one * k);  // sets that there is room for
  auto const at = [=](int set, int share) { return set % most * one * share; };
  auto const run = [=, this](int set) {
    if (out)
      stream_out(stream(), from_.data() + at(set, 1), to_.data() + at(set, k), one, k);
    else
      stream_in(stream(), from_.data() + at(set, k), to_.data() + at(set, 1), one, k);
  };
  auto const wrong = [=, this](int set) -> std::string {
    if (!options_.check) return {};
    auto const x = from_.read(), y = to_.read();
    auto const in = x.begin() + at(set, out ? 1 : k), to = y.begin() + at(set, out ? k : 1);
    bool right = true;
    for (std::int64_t i = 0; i < (out ? one * k : one); ++i) {
      int want = out ? in[i % one] : 0;
      for (int j = 0; j < k && !out; ++j) want ^= in[j * one + i];
      right = right && to[i] == want;
    }
    return right ? "" : "the stream did not arrive";
  };
  return {variant::kind::limit,
          std::move(name),
          "",
          run,
          wrong,
          {{to_.data(), static_cast<std::size_t>(out ? one * k : one)}}};
}
variant suite::out_stream(double bytes, int k) {
  return limit("stream: 1 read, " + std::to_string(k) + " written", bytes, k, true);
}
variant suite::in_stream(double bytes, int k) {
  return limit("stream: " + std::to_string(k) + " read, 1 written", bytes, k, false);
}

double suite::copy_us(int replays) {
  protocol p = protocol_;
  p.replays = replays;
  auto const bytes = static_cast<std::int64_t>(copy_bytes_ / 2);
  return time_in_turn(stream(), p, 1, {[=, this](int) {
                        stream_out(stream(), from_.data(), to_.data(), bytes, 1);
                      }})[0]
      .median;
}

void suite::ceilings() {
  ok(cudaStreamSynchronize(stream()), "cudaStreamSynchronize");
  auto const add = [&](std::string name, double bytes, int sets, std::function<void(int)> f) {
    ceilings_.push_back({std::move(name), bytes, time_in_turn(stream(), protocol_, sets, {f})[0]});
    return ceilings_.back().time.median;
  };
  empty_us_ = add("empty kernel", 0, 1, [this](int) { empty_kernel<<<1, 32, 0, stream()>>>(); });
  for (std::int64_t mib : {32, 128, 512, 4096}) {
    auto const n = mib << 20;  // bytes read, and as many written
    if (n > from_.size()) continue;
    int const sets = static_cast<int>(std::clamp<std::int64_t>((512 << 20) / n, 1, 16));
    int const fit = static_cast<int>(std::min<std::int64_t>(sets, from_.size() / n));
    std::string const size = ", " + std::to_string(mib) + " MiB";
    add("cudaMemcpyAsync" + size, 2. * static_cast<double>(n), fit, [=, this](int set) {
      ok(cudaMemcpyAsync(to_.data() + set * n, from_.data() + set * n, static_cast<std::size_t>(n),
                         cudaMemcpyDeviceToDevice, stream()),
         "cudaMemcpyAsync");
    });
    add("own copy" + size, 2. * static_cast<double>(n), fit, [=, this](int set) {
      stream_out(stream(), from_.data() + set * n, to_.data() + set * n, n, 1);
    });
    if (mib <= 512) copy_bytes_ = 2. * static_cast<double>(n);
  }
  copy_us_ = copy_us(protocol_.replays);
}

bool suite::right(block const& b, variant const& v, bool& same_bytes) {
  unsigned long long first = 0;
  array<unsigned long long> const sum(std::vector<unsigned long long>{0});
  std::string wrong;
  for (int pass = 0; pass < 3 && wrong.empty(); ++pass) {
    for (auto const& m : v.outputs)
      ok(cudaMemsetAsync(m.data, pass == 1 ? 0x55 : 0xff, m.bytes, stream()), "cudaMemsetAsync");
    ok(cudaMemsetAsync(sum.data(), 0, sum.bytes(), stream()), "cudaMemsetAsync");
    v.run(0);
    for (auto const& m : v.outputs)
      fingerprint<<<options_.check ? 8 : 1024, 256, 0, stream()>>>(
          static_cast<unsigned char const*>(m.data), m.bytes, sum.data());
    ok(cudaGetLastError(), "a launch");
    stream_.wait();
    auto const print = sum.read()[0];
    if (pass == 0) first = print;
    same_bytes = same_bytes && print == first;
    wrong = v.wrong(0);
  }
  if (wrong.empty() && b.sets > 1) {  // the others have buffers of their own
    v.run(b.sets - 1);
    stream_.wait();
    wrong = v.wrong(b.sets - 1);
  }
  if (wrong.empty() && v.is == variant::kind::expar && !same_bytes)
    wrong = "three runs give different bytes";
  ++checked_;
  if (wrong.empty()) return true;
  fail(b.op + ", " + b.of.name + ", " + name_of(b.of.ids_drawn) + ", " + v.name + ": " + wrong);
  return false;
}

void suite::measure(block b) {
  b.variants.push_back(limit(copy_name, b.bytes, 1, true));
  std::erase_if(b.variants, [](variant const& v) { return !v.run; });
  double const rotated = b.set_bytes * b.sets;
  char const* const state = rotated >= cold_bytes_ ? "cold" : rotated < l2_bytes_ ? "hot" : "warm";
  std::vector<row> rows;
  std::vector<std::function<void(int)>> runs;
  for (auto const& v : b.variants) {
    row r{b.op,   b.of.name, name_of(b.of.ids_drawn), state, v.name, v.algorithm, v.is,
          b.sets, b.bytes};
    if (right(b, v, r.same_bytes)) rows.push_back(std::move(r)), runs.push_back(v.run);
  }
  if (options_.check || runs.empty()) return;

  // A block that the copy does not agree about before and after is measured once more.
  std::vector<timing> times;
  double drift = 0, copy = copy_us_;
  for (int attempt = 0; attempt < 2; ++attempt) {
    double const before = copy_us_;
    times = time_in_turn(stream(), protocol_, b.sets, runs);
    copy_us_ = copy_us(5);
    drift = copy_us_ / before - 1, copy = (copy_us_ + before) / 2;
    if (std::abs(drift) <= .03) break;
  }
  double const floor = empty_us_ + b.bytes / copy_bytes_ * copy;
  double ours = NAN, same_copy = NAN;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].is == variant::kind::expar) ours = times[i].median;
    if (rows[i].name == copy_name) same_copy = times[i].median;
  }
  for (std::size_t i = 0; i < rows.size(); ++i) {
    auto& r = rows[i];
    r.time = times[i], r.floor_us = floor, r.copy_drift = drift;
    r.counts = std::abs(drift) <= .03;
    r.share_of_copy = same_copy / r.time.median, r.share_of_floor = floor / r.time.median;
    if (r.is == variant::kind::peer) r.times_ours = r.time.median / ours;
    if (r.is == variant::kind::expar)
      for (std::size_t j = 0; j < rows.size(); ++j)
        if (rows[j].is == variant::kind::peer)
          r.ratios.push_back({rows[j].name, times[j].median / ours});
  }
  rows_.insert(rows_.end(), rows.begin(), rows.end());
  publish_(rows);
}

}  // namespace bench
