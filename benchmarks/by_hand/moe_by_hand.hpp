// SPDX-License-Identifier: Apache-2.0
// The movement of tokens to experts and back as one writes it for a model of one's own, over MPI
// and without a library: ragged, top-k, experts in blocks over the ranks, forward and backward, in
// float.
#pragma once

#include <mpi.h>

#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

class moe_by_hand {
 public:
  // Of the local experts, after dispatch: expert l has rows [offsets[l], offsets[l + 1]). The
  // caller fills y, and after combine_backward d_rows.
  std::vector<float> rows, y, d_y, d_rows;
  std::vector<int> offsets;

  moe_by_hand(MPI_Comm comm, int experts, int top_k, int hidden)
      : comm_(comm), experts_(experts), top_k_(top_k), hidden_(hidden) {
    MPI_Comm_rank(comm, &rank_);
    MPI_Comm_size(comm, &ranks_);
    if (experts % ranks_ != 0) throw std::invalid_argument("experts must divide by ranks");
    local_ = experts / ranks_;
    MPI_Type_contiguous(hidden, MPI_FLOAT, &row_);
    MPI_Type_commit(&row_);
  }
  ~moe_by_hand() { MPI_Type_free(&row_); }
  moe_by_hand(moe_by_hand const&) = delete;
  moe_by_hand& operator=(moe_by_hand const&) = delete;

  // x: [tokens, hidden]; ids and weights: [tokens, top_k], an id of -1 is no expert.
  void dispatch(float const* x, int const* ids, float const* weights, int tokens) {
    plan(ids, weights, tokens);
    std::vector<float>& packed = token_rows_;
    packed.resize(size(sent_));
    for (int t = 0; t < tokens; ++t)
      for (int j = 0; j < top_k_; ++j)
        if (int const at = place(t, j); at >= 0)
          std::memcpy(row(packed, at), x + size(t), size(1) * sizeof(float));
    to_experts(packed, rows);
    y.resize(rows.size());
  }

  // out: [tokens, hidden]; the weighted sum of y.
  void combine(float* out) {
    to_tokens(y, y_of_tokens_);
    for (int t = 0; t < tokens_; ++t) {
      float* const o = out + size(t);
      for (int h = 0; h < hidden_; ++h) o[h] = 0;
      for (int j = 0; j < top_k_; ++j) {
        int const at = place(t, j);
        if (at < 0) continue;
        float const weight = weights_[route(t, j)];
        float const* const from = row(y_of_tokens_, at);
        for (int h = 0; h < hidden_; ++h) o[h] += weight * from[h];
      }
    }
  }

  // d_out: [tokens, hidden]; d_weights: [tokens, top_k]. Fills d_y; needs the y of combine.
  void combine_backward(float const* d_out, float* d_weights) {
    std::vector<float>& packed = token_rows_;
    packed.resize(size(sent_));
    for (int t = 0; t < tokens_; ++t) {
      float const* const d = d_out + size(t);
      for (int j = 0; j < top_k_; ++j) {
        int const at = place(t, j);
        d_weights[route(t, j)] = 0;
        if (at < 0) continue;
        float const weight = weights_[route(t, j)];
        float const* const from = row(y_of_tokens_, at);
        float* const to = row(packed, at);
        float sum[16] = {};
        int h = 0;
        for (; h + 16 <= hidden_; h += 16)
          for (int i = 0; i < 16; ++i) sum[i] += from[h + i] * d[h + i];
        for (; h < hidden_; ++h) sum[0] += from[h] * d[h];
        for (float const s : sum) d_weights[route(t, j)] += s;
        for (h = 0; h < hidden_; ++h) to[h] = weight * d[h];
      }
    }
    to_experts(packed, d_y);
    d_rows.resize(d_y.size());
  }

  // d_x: [tokens, hidden]; the sum of d_rows.
  void dispatch_backward(float* d_x) {
    to_tokens(d_rows, token_rows_);
    for (int t = 0; t < tokens_; ++t) {
      float* const d = d_x + size(t);
      for (int h = 0; h < hidden_; ++h) d[h] = 0;
      for (int j = 0; j < top_k_; ++j) {
        int const at = place(t, j);
        if (at < 0) continue;
        float const* const from = row(token_rows_, at);
        for (int h = 0; h < hidden_; ++h) d[h] += from[h];
      }
    }
  }

 private:
  static std::size_t index(int i) { return static_cast<std::size_t>(i); }
  std::size_t size(int row_count) const { return index(row_count) * index(hidden_); }
  std::size_t route(int t, int j) const { return index(t) * index(top_k_) + index(j); }
  int place(int t, int j) const { return places_[route(t, j)]; }
  float* row(std::vector<float>& v, int i) const { return v.data() + size(i); }

  // Routes in order of their experts, which is the order of the ranks too; and who sends what.
  void plan(int const* ids, float const* weights, int tokens) {
    std::size_t const routes = route(tokens, 0);
    std::vector<int> counts(index(experts_)), next(index(experts_));
    for (std::size_t i = 0; i < routes; ++i) {
      if (ids[i] < -1 || ids[i] >= experts_)
        throw std::out_of_range("expert id " + std::to_string(ids[i]));
      if (ids[i] >= 0) ++counts[index(ids[i])];
    }
    sent_ = 0;
    for (int e = 0; e < experts_; ++e) next[index(e)] = sent_, sent_ += counts[index(e)];
    places_.resize(routes);
    for (std::size_t i = 0; i < routes; ++i) places_[i] = ids[i] < 0 ? -1 : next[index(ids[i])]++;
    weights_.assign(weights, weights + routes);
    tokens_ = tokens;

    arrived_.resize(index(experts_));  // [ranks, local experts]
    MPI_Alltoall(counts.data(), local_, MPI_INT, arrived_.data(), local_, MPI_INT, comm_);
    send_counts_.assign(index(ranks_), 0), receive_counts_.assign(index(ranks_), 0);
    for (int e = 0; e < experts_; ++e) {
      send_counts_[index(e / local_)] += counts[index(e)];
      receive_counts_[index(e / local_)] += arrived_[index(e)];
    }
    send_from_.assign(index(ranks_), 0), receive_from_.assign(index(ranks_), 0);
    for (int r = 1; r < ranks_; ++r) {
      send_from_[index(r)] = send_from_[index(r - 1)] + send_counts_[index(r - 1)];
      receive_from_[index(r)] = receive_from_[index(r - 1)] + receive_counts_[index(r - 1)];
    }
    received_ = receive_from_[index(ranks_ - 1)] + receive_counts_[index(ranks_ - 1)];
    offsets.assign(index(local_ + 1), 0);
    for (int l = 0; l < local_; ++l) {
      offsets[index(l + 1)] = offsets[index(l)];
      for (int r = 0; r < ranks_; ++r) offsets[index(l + 1)] += arrived_[index(r * local_ + l)];
    }
  }

  // Rows arrive by (rank, expert), and experts want them by (expert, rank): calls
  // f(row that arrives, row of the expert, number of rows) for each block.
  template <class F>
  void each_block(F f) const {
    std::vector<int> next(offsets.begin(), offsets.end() - 1);
    int at = 0;
    for (int r = 0; r < ranks_; ++r)
      for (int l = 0; l < local_; ++l) {
        int const n = arrived_[index(r * local_ + l)];
        f(at, next[index(l)], n);
        at += n, next[index(l)] += n;
      }
  }
  void to_experts(std::vector<float> const& from, std::vector<float>& to) {
    expert_rows_.resize(size(received_)), to.resize(size(received_));
    MPI_Alltoallv(from.data(), send_counts_.data(), send_from_.data(), row_, expert_rows_.data(),
                  receive_counts_.data(), receive_from_.data(), row_, comm_);
    each_block([&](int arrived, int wanted, int n) {
      std::memcpy(row(to, wanted), row(expert_rows_, arrived), size(n) * sizeof(float));
    });
  }
  void to_tokens(std::vector<float>& from, std::vector<float>& to) {
    expert_rows_.resize(size(received_)), to.resize(size(sent_));
    each_block([&](int arrived, int wanted, int n) {
      std::memcpy(row(expert_rows_, arrived), row(from, wanted), size(n) * sizeof(float));
    });
    MPI_Alltoallv(expert_rows_.data(), receive_counts_.data(), receive_from_.data(), row_,
                  to.data(), send_counts_.data(), send_from_.data(), row_, comm_);
  }

  MPI_Comm comm_;
  MPI_Datatype row_;
  int experts_, top_k_, hidden_, rank_ = 0, ranks_ = 1, local_ = 0;
  int tokens_ = 0, sent_ = 0, received_ = 0;
  std::vector<int> places_, arrived_, send_counts_, send_from_, receive_counts_, receive_from_;
  std::vector<float> weights_, token_rows_, expert_rows_, y_of_tokens_;
};
