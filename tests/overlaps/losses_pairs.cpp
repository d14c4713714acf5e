// SPDX-License-Identifier: Apache-2.0
#include <expar/router/losses.hpp>
#include <expar/router/research/diverse_loss.hpp>
#include <expar/router/research/expert_choice_loss.hpp>
#include <expar/router/research/orthogonal_loss.hpp>

#include "support/overlaps.hpp"

using expar::add_to;
using expar::only;
using namespace overlap_test;
using expar::make_view;

namespace {

constexpr int tokens = 16, experts = 4, devices = 2, k = 2;
expar::host_context const ctx;
expar::softmax_score const softmax;
expar::cv_squared_options const variation{.ddof = 0, .epsilon = 1};

auto logits(std::byte* at) {
  return make_view(as<float>(at), tokens, experts);
}
auto ids(std::byte* at) {
  return make_view(as<std::int32_t>(at), tokens, k);
}
auto weights(std::byte* at) {
  return make_view(as<float>(at), tokens, k);
}
auto marks(std::byte* at) {
  return make_view(as<std::uint8_t>(at), tokens);
}
auto sums(std::byte* at) {
  return make_view(as<double>(at), experts);
}
template <class T = std::int32_t>
auto integers(std::byte* at, int n) {
  return make_view(as<T>(at), n);
}
expar::packed_sequences<std::int64_t> sequences(std::byte* at) {
  return {integers<std::int64_t>(at, 3)};
}
void fill_offsets(std::byte* at) {
  as<std::int64_t>(at)[1] = as<std::int64_t>(at)[2] = tokens;
}
void fill_devices(std::byte* at) {
  as<std::int32_t>(at)[2] = as<std::int32_t>(at)[3] = 1;
}

constexpr argument reads(char const* name, std::size_t bytes) {
  return {name, access::read, bytes};
}
constexpr argument writes(char const* name, std::size_t bytes) {
  return {name, access::written, bytes};
}
constexpr std::size_t of_logits = tokens * experts * 4, of_choices = tokens * k * 4,
                      of_sums = experts * 8, of_counts = experts * 4, of_devices = devices * 8;
argument const z = reads("logits", of_logits), valid = reads("valid", tokens),
               dz = writes("d_logits", of_logits), read_ids = reads("ids", of_choices),
               counts = reads("counts", of_counts), read_sums = reads("sums", of_sums),
               device_of = reads("device_of", of_counts), offsets = reads("offsets", 24);

}  // namespace

TEST_CASE("overlaps: counts are written apart from what is counted") {
  check_all({
      {"count_choices",
       {read_ids, valid, writes("counts", of_counts)},
       {},
       [](auto at) {
         expar::count_choices(ctx, only(marks(at[1]), ids(at[0])), k, integers(at[2], experts));
       }},
      {"count_choices",
       {reads("offsets", 8 * (tokens + 1)), reads("ids", tokens * 4), valid,
        writes("counts", of_counts)},
       {},
       [](auto at) {
         expar::count_choices(ctx, integers<std::int64_t>(at[0], tokens + 1),
                              only(marks(at[2]), integers(at[1], tokens)),
                              integers(at[3], experts));
       },
       [](auto at) { as<std::int64_t>(at[0])[tokens] = tokens; }},
      {"count_sequence_choices",
       {read_ids, valid, offsets, writes("counts", 2 * of_counts)},
       {},
       [](auto at) {
         expar::count_sequence_choices(ctx, sequences(at[2]), only(marks(at[1]), ids(at[0])), k,
                                       make_view(as<std::int32_t>(at[3]), 2, experts));
       },
       [](auto at) { fill_offsets(at[2]); }},
      {"count_sequence_tokens",
       {valid, offsets, writes("lengths", 16)},
       {},
       [](auto at) {
         expar::count_sequence_tokens(ctx, sequences(at[1]), only(marks(at[0]), tokens),
                                      integers<std::int64_t>(at[2], 2));
       },
       [](auto at) { fill_offsets(at[1]); }},
      {"count_device_routes",
       {counts, device_of, writes("device_counts", of_devices)},
       {},
       [](auto at) {
         expar::count_device_routes(ctx, integers(at[0], experts), integers(at[1], experts),
                                    integers<std::int64_t>(at[2], devices));
       }},
      {"count_device_tokens",
       {read_ids, valid, device_of, writes("device_counts", of_devices)},
       {},
       [](auto at) {
         expar::count_device_tokens(ctx, only(marks(at[1]), ids(at[0])), integers(at[2], experts),
                                    integers<std::int64_t>(at[3], devices));
       }},
  });
}

TEST_CASE("overlaps: sums and their gradients are written apart from what they are of") {
  check_all({
      {"cv_squared_backward",
       {read_sums, writes("d_sums", of_sums)},
       {},
       [](auto at) { expar::cv_squared_backward(ctx, sums(at[0]), variation, sums(at[1])); }},
      {"score_importance",
       {z, valid, writes("sums", of_sums)},
       {},
       [](auto at) {
         expar::score_importance(ctx, softmax, only(marks(at[1]), logits(at[0])), sums(at[2]));
       }},
      {"score_importance_loss_backward",
       {z, valid, read_sums, dz},
       {},
       [](auto at) {
         expar::score_importance_loss_backward(ctx, softmax, only(marks(at[1]), logits(at[0])),
                                               sums(at[2]), variation, logits(at[3]));
       }},
      {"weight_importance",
       {read_ids, valid, reads("weights", of_choices), writes("sums", of_sums)},
       {},
       [](auto at) {
         expar::weight_importance(ctx, only(marks(at[1]), ids(at[0])), weights(at[2]), sums(at[3]));
       }},
      {"weight_importance_loss_backward",
       {read_ids, valid, read_sums, writes("d_weights", of_choices)},
       {},
       [](auto at) {
         expar::weight_importance_loss_backward(ctx, only(marks(at[1]), ids(at[0])), sums(at[2]),
                                                variation, weights(at[3]));
       }},
      {"smooth_load",
       {reads("clean", of_logits), valid, reads("noisy", of_logits), reads("sigma", of_logits),
        writes("sums", of_sums)},
       {},
       [](auto at) {
         expar::smooth_load(ctx, only(marks(at[1]), logits(at[0])), logits(at[2]), logits(at[3]),
                            {.top_k = k}, sums(at[4]));
       }},
      {"load_loss_backward",
       {reads("clean", of_logits), valid, reads("noisy", of_logits), reads("sigma", of_logits),
        read_sums, writes("d_clean", of_logits), writes("d_noisy", of_logits),
        writes("d_sigma", of_logits)},
       {{5, 6}},
       [](auto at) {
         expar::load_loss_backward(ctx, only(marks(at[1]), logits(at[0])), logits(at[2]),
                                   logits(at[3]), sums(at[4]), {.top_k = k}, variation,
                                   logits(at[5]), logits(at[6]), logits(at[7]));
       }},
      {"load_loss_backward",
       {reads("clean", of_logits), reads("noisy", of_logits), read_sums,
        writes("d_clean", of_logits), writes("d_noisy", of_logits)},
       {},
       [](auto at) {
         expar::load_loss_backward(ctx, logits(at[0]), logits(at[1]), 1, sums(at[2]), {.top_k = k},
                                   variation, add_to(logits(at[3])), add_to(logits(at[4])));
       }},
  });
}

TEST_CASE("overlaps: gradients of losses are written apart from what the losses read") {
  check_all({
      {"z_loss_backward",
       {z, valid, dz},
       {},
       [](auto at) {
         expar::z_loss_backward(ctx, only(marks(at[1]), logits(at[0])), {}, logits(at[2]));
       }},
      {"entropy_loss_backward",
       {z, valid, dz},
       {},
       [](auto at) {
         expar::entropy_loss_backward(ctx, only(marks(at[1]), logits(at[0])), {}, logits(at[2]));
       }},
      {"expert_choice_loss_backward",
       {z, valid, dz},
       {},
       [](auto at) {
         expar::expert_choice_loss_backward(ctx, only(marks(at[1]), logits(at[0])), {},
                                            logits(at[2]));
       }},
      {"load_balance_loss_backward",
       {z, valid, counts, dz},
       {},
       [](auto at) {
         expar::load_balance_loss_backward(ctx, only(marks(at[1]), logits(at[0])),
                                           integers(at[2], experts), {.choices = 1}, logits(at[3]));
       }},
      {"load_balance_loss_backward",
       {z, counts, dz},
       {},
       [](auto at) {
         expar::load_balance_loss_backward(ctx, logits(at[0]), integers(at[1], experts),
                                           {.choices = 1}, add_to(logits(at[2])));
       }},
      {"sequence_balance_loss_backward",
       {z, valid, offsets, reads("counts", 2 * of_counts), reads("lengths", 16), dz},
       {},
       [](auto at) {
         expar::sequence_balance_loss_backward(
             ctx, softmax, sequences(at[2]), only(marks(at[1]), logits(at[0])),
             make_view(as<std::int32_t>(at[3]), 2, experts), integers<std::int64_t>(at[4], 2),
             {.choices = 1}, logits(at[5]));
       },
       [](auto at) { fill_offsets(at[2]); }},
      {"device_balance_loss_backward",
       {z, valid, device_of, reads("device_counts", of_devices), dz},
       {},
       [](auto at) {
         expar::device_balance_loss_backward(
             ctx, softmax, only(marks(at[1]), logits(at[0])), integers(at[2], experts),
             integers<std::int64_t>(at[3], devices), {.choices = 1}, logits(at[4]));
       },
       [](auto at) { fill_devices(at[2]); }},
      {"orthogonal_loss_backward",
       {reads("weights", of_logits), writes("d_weights", of_logits)},
       {},
       [](auto at) { expar::orthogonal_loss_backward(ctx, logits(at[0]), {}, logits(at[1])); }},
      {"diverse_loss_backward",
       {reads("weights", of_logits), reads("there", tokens), writes("d_weights", of_logits)},
       {},
       [](auto at) {
         expar::diverse_loss_backward(ctx, logits(at[0]), marks(at[1]), {}, logits(at[2]));
       }},
  });
}
