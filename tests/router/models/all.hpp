// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/router/models.hpp>
#include <expar/router/noise.hpp>

#include <cstdint>

namespace model_list {

/// What models look up, for one token and 8 experts.
struct tables {
  std::int32_t ids[16], name, classes, bounds[3];
  double numbers[8];
  float factors[8];

  static tables const& here() {
    static tables const t{{0, 3, 2, 5, 7, 1, 4, 6, 1, 0, 3, 2, 6, 7, 5, 4},
                          1,
                          0,
                          {0, 5, 8},
                          {.25, 1.5, -.75, 2, 0, 1, .125, -2},
                          {1, .5f, 2, 1.5f, -1, 3, .25f, 1}};
    return t;
  }
};

/// f(name, router) for every value of expar::models, each for 8 experts and up to `k` choices. The
/// tables are only read by the routers.
template <class F>
void for_each(int k, tables const& t, F f) {
  namespace m = expar::models;
  using expar::make_view;
  expar::add_rows<double> const noise{make_view(t.numbers, 1, 8)};
  expar::given_keys<double> const keys{make_view(t.numbers, 1, 8)};
  expar::expert_scale<float> const factors{make_view(t.factors, 8)};
  expar::table_ids const table{make_view(t.ids, 16 / k, k), make_view(&t.name, 1)};
  expar::given_ids const given{make_view(t.ids, 1, k)}, one{make_view(t.ids, 1, 1)};
  expar::experts_of_class const classes{make_view(&t.classes, 1), make_view(t.bounds, 3)};
  expar::router_shape const shape{8, k};
  m::scaled_shape const scaled{8, k, 2.5};
  m::grouped_shape const grouped{8, k, 4, k > 4 ? 4 : 2, 2.5};

  f("mixtral", m::mixtral(shape));
  f("qwen2_moe", m::qwen2_moe(shape));
  f("qwen3_moe", m::qwen3_moe(shape));
  f("arctic", m::arctic(shape));
  f("jamba", m::jamba(shape));
  f("grok_1", m::grok_1(shape));
  f("grok_2", m::grok_2(shape));
  f("grok_2_biased", m::grok_2_biased(shape, noise));
  f("dbrx", m::dbrx(shape, 3));
  f("megablocks", m::megablocks(shape));
  f("deepseek_v2", m::deepseek_v2(grouped));
  f("mistral_4", m::mistral_4(grouped));
  f("ernie_4_5", m::ernie_4_5(shape));
  f("ernie_4_5_vl", m::ernie_4_5_vl(shape, classes));
  f("ernie_4_5_vl", m::ernie_4_5_vl(shape, classes, expar::sigmoid_score{}));
  f("longcat_flash", m::longcat_flash(scaled));
  f("gemma_4", m::gemma_4(shape, factors));
  f("pangu_pro", m::pangu_pro(shape, k));
  f("hunyuan_large", m::hunyuan_large(shape));
  f("hunyuan_a13b", m::hunyuan_a13b(shape));
  f("zaya", m::zaya(shape));
  f("grove_moe", m::grove_moe(shape));
  f("moe_plus_plus", m::moe_plus_plus(shape, {6, 8}));
  f("moe_plus_plus", m::moe_plus_plus(shape, {6, 8}, noise));

  f("deepseek_v3", m::deepseek_v3(grouped));
  f("a_x_k2", m::a_x_k2(grouped));
  f("glm_4_5", m::glm_4_5(scaled));
  f("kimi_k2", m::kimi_k2(scaled));
  f("moonlight", m::moonlight(scaled));
  f("dots_llm1", m::dots_llm1(scaled));
  f("nemotron_3", m::nemotron_3(scaled));
  f("biased_sigmoid", m::biased_sigmoid(scaled));
  f("minimax_m2", m::minimax_m2(shape));
  f("afmoe", m::afmoe(scaled));
  f("lfm2_moe", m::lfm2_moe(scaled));
  f("deepseek_v4", m::deepseek_v4(scaled));
  f("deepseek_v4_hash", m::deepseek_v4_hash(scaled, table));
  f("laguna", m::laguna(scaled, 30));
  f("laguna", m::laguna(scaled, 30, expar::sqrt_softplus_score{}));
  f("kolibri_1", m::kolibri_1(shape));
  f("klear", m::klear(shape));

  f("gpt_oss", m::gpt_oss(shape));
  f("granite_moe", m::granite_moe(shape));
  f("jetmoe", m::jetmoe(shape));
  f("aria", m::aria(shape));
  f("cohere2_moe", m::cohere2_moe(shape));
  f("cohere2_moe_sigmoid", m::cohere2_moe_sigmoid(shape));
  f("yuan_2", m::yuan_2(shape));
  f("llama_4", m::llama_4(shape));
  f("fastmoe_naive", m::fastmoe_naive(shape));
  f("noisy_top_k", m::noisy_top_k(shape, noise));
  f("smoe_dropout", m::smoe_dropout(shape, noise));

  f("switch_top1", m::switch_top1(8));
  f("switch_sampled", m::switch_sampled(8, noise));
  f("ntlb", m::ntlb(shape));
  f("gshard_top2", m::gshard_top2(8));
  f("fairscale_top2", m::fairscale_top2(8, noise));
  f("deepspeed_top1", m::deepspeed_top1(8));
  f("deepspeed_top_k", m::deepspeed_top_k(shape));
  f("deepspeed_top2", m::deepspeed_top2(8, noise));
  f("nllb_moe", m::nllb_moe(8));
  f("nllb_moe", m::nllb_moe(8, noise));
  f("fastmoe_gshard", m::fastmoe_gshard(8));
  f("fastmoe_switch", m::fastmoe_switch(8, noise));
  f("fastmoe_zero", m::fastmoe_zero(8));
  f("v_moe", m::v_moe(shape));
  f("v_moe", m::v_moe(shape, noise));
  f("tutel", m::tutel(shape));
  f("tutel", m::tutel(shape, noise));
  f("st_moe", m::st_moe(shape));

  f("megatron_softmax", m::megatron_softmax(scaled));
  f("megatron_softmax_grouped", m::megatron_softmax_grouped({8, 2, 4, 2, 2.5}));
  f("megatron_post_softmax", m::megatron_post_softmax(scaled));
  f("megatron_sigmoid", m::megatron_sigmoid(scaled));
  f("megatron_sigmoid", m::megatron_sigmoid(scaled, expar::sqrt_softplus_score{}));
  f("megatron_grouped", m::megatron_grouped({8, 2, 4, 2, 2.5}));
  f("megatron_sinkhorn_top1", m::megatron_sinkhorn_top1(8, keys));
  f("megatron_sinkhorn_top1", m::megatron_sinkhorn_top1(8));
  f("megatron_sinkhorn", m::megatron_sinkhorn(shape, keys));
  f("megatron_sinkhorn", m::megatron_sinkhorn(shape));
  f("megatron_quantile", m::megatron_quantile(scaled));
  f("megatron_quantile_sigmoid", m::megatron_quantile_sigmoid(scaled));
  f("transformer_engine_quantile", m::transformer_engine_quantile(scaled));
  f("torchtitan", m::torchtitan(scaled));
  f("torchtitan", m::torchtitan(scaled, expar::softmax_score{}));
  f("torchtitan_grouped", m::torchtitan_grouped({8, k, 2, 2, 2.5}));
  f("maxtext", m::maxtext(shape));
  f("olmo_core", m::olmo_core(shape));
  f("olmo_core_sigmoid", m::olmo_core_sigmoid(shape));
  f("flashinfer_default", m::flashinfer_default(shape));
  f("flashinfer_renormalize", m::flashinfer_renormalize(shape));
  f("flashinfer_deepseek_v3", m::flashinfer_deepseek_v3(grouped));
  f("flashinfer_llama4", m::flashinfer_llama4(8));
  f("flashinfer_sigmoid_renorm", m::flashinfer_sigmoid_renorm(shape));
  f("flashinfer_minimax2", m::flashinfer_minimax2(scaled));
  f("flashinfer_sigmoid", m::flashinfer_sigmoid(shape));
  f("flashinfer_top_k_sigmoid", m::flashinfer_top_k_sigmoid(shape));
  f("flashinfer_top_k", m::flashinfer_top_k(shape));
  f("forced_random", m::forced_random(shape, noise));
  f("forced_round_robin", m::forced_round_robin(shape));
  f("replayed", m::replayed(shape, given));

  f("hash_layers", m::hash_layers(shape, table));
  f("dense_to_sparse", m::dense_to_sparse(shape, noise, 2));
  f("top_p_moe", m::top_p_moe(8));
  f("dynmoe", m::dynmoe(8, true));
  f("remoe", m::remoe(8));
  f("base_layer", m::base_layer(8, one));
  f("base_layer", m::base_layer(8));
}
template <class F>
void for_each(int k, F f) {
  for_each(k, tables::here(), f);
}

/// The same for some that draw their noise, and for routers of another kind than policies.
template <class F>
void for_each_drawn(tables const& t, F f) {
  namespace m = expar::models;
  expar::random_stream const stream{.seed = 3, .step = 5, .layer = 1, .first_token = 1000};
  expar::add_learned_noise const learned{expar::make_view(t.numbers, 1, 8), .01,
                                         expar::normals{stream}};
  f("switch_sampled", m::switch_sampled(8, expar::add_noise{1, expar::gumbels{stream}}));
  f("fairscale_top2", m::fairscale_top2(8, expar::add_noise{1, expar::gumbels{stream}}));
  f("v_moe", m::v_moe({8, 2}, expar::add_noise{.125, expar::normals{stream}}));
  f("noisy_top_k", m::noisy_top_k({8, 2}, learned));
  f("smoe_dropout", m::smoe_dropout({8, 2}, expar::random_logits{false, expar::uniforms{stream}}));
  f("fastmoe_switch", m::fastmoe_switch(8, expar::add_uniform{.1, expar::uniforms{stream}}));
  f("tutel", m::tutel({8, 2}, expar::multiply_uniform{.1, expar::uniforms{stream}}));
  f("phi_3_5_moe", m::phi_3_5_moe(8));
  f("phi_3_5_moe",
    m::phi_3_5_moe(8, .01, expar::gumbels{stream},
                   expar::gumbels{stream, expar::random_purpose{128}}, expar::uniforms{stream}));
}

}  // namespace model_list
