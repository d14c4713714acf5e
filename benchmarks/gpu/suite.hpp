// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <expar/gpu/context.cuh>

#include "problem.hpp"
#include "timing.hpp"

namespace bench {

struct options {
  bool check = false, quick = false;
  std::string filter, json;
};

/// One way to do an operation. `run(set)` enqueues it on one set of buffers; `wrong(set)` says what
/// is wrong with the outputs, or nothing; `outputs` are those of set 0, which are poisoned before a
/// run and compared after it.
struct variant {
  struct memory {
    void* data;
    std::size_t bytes;
    template <class T>
    memory(array<T> const& a) : data(a.data()), bytes(a.bytes()) {}
    memory(void const* p, std::size_t n) : data(const_cast<void*>(p)), bytes(n) {}
  };
  enum class kind { expar, peer, limit };

  kind is;
  std::string name, algorithm;  // of a peer: where the algorithm comes from
  std::function<void(int)> run;
  std::function<std::string(int)> wrong;
  std::vector<memory> outputs;
};

/// An operation on one configuration, and all ways to do it.
struct block {
  std::string op;
  problem const& of;
  double bytes;      // what it has to move at least
  double set_bytes;  // of one set of buffers
  int sets;
  std::vector<variant> variants;
};

/// A line of the report; it has no figures where the block was rejected.
struct row {
  std::string op, config, ids, state, name, algorithm;
  variant::kind is;
  int sets;
  double bytes;
  bool counts = true, same_bytes = true;
  timing time{};
  double floor_us = 0, share_of_copy = 0, share_of_floor = 0, copy_drift = 0;
  double times_ours = 0;                                 // of a peer: its time / that of expar
  std::vector<std::pair<std::string, double>> ratios{};  // of expar: the same, for every peer
};

struct ceiling {
  std::string name;
  double bytes;  // read and written
  timing time;
};

/// Checks and times blocks, and gathers what the report says.
class suite {
 public:
  /// `publish` gets the rows of every block as soon as they are there.
  using publisher = std::function<void(std::vector<row> const&)>;
  suite(options const& o, cudaDeviceProp const& device, publisher publish);

  options const& chosen() const { return options_; }
  cudaStream_t stream() const { return stream_.get(); }
  expar::gpu::context const& context() const { return context_; }
  bool wants(std::string const& op, problem const& p) const;
  /// Whether `bytes` more fit on the device; says so where they do not.
  bool fits(std::string const& what, double bytes);

  /// The numbers of sets of buffers to measure with: so many that reads are cold and evictions are
  /// paid (256 MB and four times the L2 cache), and one where a set stays in the cache. A set of
  /// which it takes more than 64 is measured in the cache alone.
  std::vector<int> sets_for(double set_bytes) const;

  /// The copy and the empty kernel, at several sizes.
  void ceilings();
  /// Adds a copy of the same bytes, checks every variant, and times all of them in turn.
  void measure(block b);
  /// Streams of `bytes` from one place to k, or from k to one, over rotating memory.
  variant out_stream(double bytes, int k);
  variant in_stream(double bytes, int k);

  std::vector<ceiling> const& measured_ceilings() const { return ceilings_; }
  std::vector<row> const& rows() const { return rows_; }
  std::vector<std::string> const& notes() const { return notes_; }
  int checked() const { return checked_; }
  int failed() const { return failed_; }
  /// A line at the end of the report, once.
  void note(std::string text);
  /// An operation ended early.
  void fail(std::string const& what);

 private:
  bool right(block const& b, variant const& v, bool& same_bytes);
  variant limit(std::string name, double bytes, int k, bool out);
  double copy_us(int replays);

  options options_;
  publisher publish_;
  bench::stream stream_;
  expar::gpu::context context_;
  protocol protocol_;
  double l2_bytes_, cold_bytes_;
  array<unsigned char> from_, to_;  // what streams read and write
  std::vector<ceiling> ceilings_;
  std::vector<row> rows_;
  std::vector<std::string> notes_;
  double copy_bytes_ = 0, copy_us_ = 0, empty_us_ = 0;
  int checked_ = 0, failed_ = 0;
};

// The operations, each in a file of its own.
void measure_plan(suite& s, problem const& p);
void measure_rows(suite& s, problem const& p);
void measure_quantized(suite& s, problem const& p);
void measure_dense(suite& s, problem const& p);
void measure_gate(suite& s, problem const& p);

}  // namespace bench
