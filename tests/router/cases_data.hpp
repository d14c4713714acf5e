// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

// Worked examples in float64: logits of a few tokens, and what published routers make of them. The
// formulas were checked against libtorch, the gradients against central differences.

namespace cases {

using matrix = std::vector<std::vector<double>>;
using id_matrix = std::vector<std::vector<std::int32_t>>;

// Four tokens that several cases share.
inline matrix const logits{{2.0, 1.0, 0.5, -1.0},
                           {1.5, 2.5, 0.0, 0.25},
                           {3.0, 0.75, 1.25, -0.5},
                           {1.75, 0.875, 2.25, 0.125}};

namespace switch_top1 {
inline id_matrix const ids{{0}, {1}, {0}, {2}};
inline matrix const weights{
    {0.6094600375988771}, {0.642936454615761}, {0.7637257450951053}, {0.5053559585817142}};
inline id_matrix const locations{{0}, {0}, {1}, {0}};
inline std::vector<std::int32_t> const counts{2, 1, 1, 0};
inline double const load_balance = 1.4336739639094407;
inline matrix const d_load_balance{
    {0.06412787134688638, -0.032460629037443574, -0.019688366744767715, -0.011978875564675097},
    {0.04915197852187117, -0.027125183605128566, -0.0022265706588999803, -0.01980022425784262},
    {0.049515542749697904, -0.014905125518161035, -0.02457439748424737, -0.010036019747289557},
    {0.05776578103330034, -0.007863138926482152, -0.031099317737220255, -0.018803324369597942}};
inline double const z_loss = 8.542257995664006;
inline matrix const d_z_loss{
    {0.7603568267117217, 0.27971964450159936, 0.16965854051413834, 0.03785593731546857},
    {0.34789111698621505, 0.9456661015859482, 0.0776250006473503, 0.09967247380160016},
    {1.2485184285945317, 0.131592874225061, 0.21695997080742474, 0.03770198969809965},
    {0.4494247899946368, 0.18734812565075382, 0.7409762108440959, 0.08849698827613704}};
}  // namespace switch_top1

namespace tutel_top2 {
inline matrix const logits{
    {2.0, 1.0, 0.5, -1.0}, {1.5, 2.5, 0.0, 0.25}, {3.0, 0.75, 1.25, -0.5}, {2.5, 2.0, 0.5, 0.125}};
inline id_matrix const ids{{0, 1}, {1, 0}, {0, 2}, {0, 1}};
inline matrix const weights{{0.7310585786300049, 0.2689414213699951},
                            {0.7310585786300048, 0.2689414213699951},
                            {0.8519528019683106, 0.14804719803168948},
                            {0.6224593312018546, 0.3775406687981454}};
inline id_matrix const locations{{0, 1}, {0, 3}, {1, 0}, {2, 2}};
inline double const load_balance = 1.9355767275944507;
}  // namespace tutel_top2

namespace mixtral {
inline id_matrix const ids{{0, 1}, {1, 0}, {0, 2}, {2, 0}};
inline matrix const weights{{0.7310585786300049, 0.2689414213699951},
                            {0.7310585786300048, 0.2689414213699951},
                            {0.8519528019683106, 0.14804719803168948},
                            {0.6224593312018546, 0.3775406687981454}};
inline double const hugging_face_loss = 2.867347927818881;
inline double const megatron_loss = 1.4336739639094405;
}  // namespace mixtral

namespace qwen {
inline matrix const logits{{0.5, 0.375, 1.0, 0.75, -2.5, 2.0, 0.25, -0.5},
                           {1.25, 1.0, -2.0, 0.0, 0.5, 0.625, 1.5, -1.0}};
inline id_matrix const ids{{5, 2, 3, 0}, {6, 0, 1, 5}};
inline matrix const weights{
    {0.4270959927616611, 0.15711983514372227, 0.12236505064598092, 0.09529799726366206},
    {0.2852671949301496, 0.22216631479618362, 0.17302329993535606, 0.11891705902660493}};
inline matrix const renormalized{
    {0.5326190845563334, 0.19593961118382913, 0.1525979226246727, 0.11884338163516475},
    {0.3568632977686014, 0.27792541575163066, 0.21644853142281575, 0.1487627550569521}};
}  // namespace qwen

namespace padded_z_loss {
inline double const coefficient = 0.001;
inline std::vector<std::uint8_t> const valid{1, 1, 0, 1};
inline std::vector<double> const log_sums{2.495181898085856, 2.941709386042227, 3.2695465266502337,
                                          2.932492229531247};
inline double const z_loss = 0.007826365830908472;
inline matrix const d_logits{
    {0.0010138091022822958, 0.0003729595260021325, 0.00022621138735218446, 5.047458308729142e-05},
    {0.00046385482264828677, 0.001260888135447931, 0.00010350000086313374, 0.00013289663173546689},
    {0.0, 0.0, 0.0, 0.0},
    {0.0005992330533261825, 0.0002497975008676718, 0.0009879682811254613, 0.00011799598436818273}};
}  // namespace padded_z_loss

namespace kimi_k2 {
inline std::vector<double> const bias{0.0, 0.125, -0.25, 0.0625, 0.25, -0.125, 0.0, 0.1875};
inline double const scale = 2.827;
inline id_matrix const ids{{5, 3, 1, 0}, {4, 1, 6, 0}};
inline matrix const weights{
    {0.8972692179129452, 0.691880292826697, 0.6037502960894995, 0.6341001931708586},
    {0.5968312157171946, 0.7009591765646426, 0.783913011029735, 0.7452965966884283}};
}  // namespace kimi_k2

// Logits of qwen.
namespace deepseek_v3 {
inline std::vector<double> const& bias = kimi_k2::bias;
inline double const scale = 2.5;
inline id_matrix const ids{{3, 1, 0}, {4, 1, 0}};
inline matrix const weights{{0.8963430278062026, 0.7821690746889153, 0.821487897504882},
                            {0.7303056831882658, 0.8577206701780382, 0.911973646633696}};
inline matrix const scores{
    {0.6224593312018546, 0.5926665999540697, 0.7310585786300049, 0.679178699175393,
     0.07585818002124356, 0.8807970779778823, 0.5621765008857981, 0.37754066879814546},
    {0.7772998611746911, 0.7310585786300049, 0.11920292202211755, 0.5, 0.6224593312018546,
     0.6513548646660542, 0.8175744761936437, 0.2689414213699951}};
inline matrix const group_scores{
    {1.3401259311559244, 1.2227372778053978, 1.0816552579991259, 1.1272171696839437},
    {1.633358439804696, 0.4317029220221176, 1.3988141958679088, 1.2740158975636389}};
inline id_matrix const groups{{0, 1}, {0, 2}};
// All keys are negative: experts outside of the best groups must fall behind them nevertheless.
inline std::vector<double> const negative{-2.0, -1.5, -2.0, -1.75, -2.0, -2.0, -1.5, -2.0};
inline id_matrix const negative_ids{{1, 6, 3}, {6, 1, 0}};
inline matrix const negative_weights{{0.3231513387404327, 0.30652661864821906, 0.37032204261134827},
                                     {0.3515038935861671, 0.3143076799857829, 0.33418842642805013}};
}  // namespace deepseek_v3

// Logits of qwen, bias of kimi_k2.
namespace minimax_m2 {
inline id_matrix const ids{{5, 3}, {4, 1}};
inline matrix const weights{{0.5646222786774334, 0.43537772132256664},
                            {0.45988259680965693, 0.5401174031903431}};
}  // namespace minimax_m2

// Logits of qwen, and a bias that is part of them.
namespace gpt_oss {
inline std::vector<double> const bias{0.25, -0.5, 0.0, 0.4375, 1.25, -0.25, 0.125, 0.0};
inline id_matrix const ids{{5, 3, 2, 0}, {4, 6, 0, 1}};
inline matrix const weights{
    {0.414932797593228, 0.23642158148617376, 0.1960003752182983, 0.1526452457022999},
    {0.3392357547465047, 0.2993745028097379, 0.2641970714423969, 0.09719267100136059}};
}  // namespace gpt_oss

namespace llama_4 {
inline id_matrix const ids{{0}, {1}, {0}, {2}};
inline matrix const weights{
    {0.8807970779778823}, {0.9241418199787566}, {0.9525741268224334}, {0.9046505351008906}};
// Of an expert x / (1 + exp(-x)), for tokens that are 2: not what weights on the output give.
inline std::vector<double> const outputs{1.5033606674109596, 1.5967792877441338, 1.658380301642288,
                                         1.5546914851529308};
inline std::vector<double> const weighed_outputs{1.5516069851487515, 1.627962829348902,
                                                 1.678049014925064, 1.5936270958159842};
}  // namespace llama_4

// Logits of qwen.
namespace hash_routing {
inline id_matrix const table{{0, 3}, {2, 5}, {7, 1}};
inline id_matrix const ids{{2, 5}, {7, 1}};
inline matrix const weights{{0.6600294394816016, 0.8399705605183982},
                            {0.4922081847946485, 1.0077918152053515}};
}  // namespace hash_routing

namespace moe_plus_plus {
inline matrix const logits{{1.0, 0.5, 0.25, -0.5, 0.0, 1.5}, {2.0, 1.0, 0.0, 1.75, 0.5, -1.0}};
inline id_matrix const ids{{5, 0}, {0, 3}};
inline matrix const weights{{0.0, 1.0}, {0.5621765008857981, 0.43782349911420193}};
}  // namespace moe_plus_plus

namespace grok {
inline matrix const logits{{20.0, -10.0, 5.0, 0.0}, {40.0, 35.0, -50.0, 1.0}};
inline matrix const capped{
    {17.483488360437306, -9.64538212594903, 4.954212387738881, 0.0},
    {26.101849852280157, 24.696019367576493, -27.93328826002733, 0.9996297941646859}};
inline id_matrix const ids{{0, 2}, {0, 1}};
inline matrix const weights{{0.9999963553502619, 3.6191201384188872e-06},
                            {0.8031074685658472, 0.1968925314240832}};
}  // namespace grok

// Logits of qwen.
namespace pangu_pro {
inline id_matrix const ids{{0, 2, 5, 6}, {0, 3, 5, 6}};
inline matrix const weights{
    {0.09529799726366206, 0.15711983514372227, 0.4270959927616611, 0.07421815489407663},
    {0.22216631479618362, 0.06365171488985763, 0.11891705902660493, 0.2852671949301496}};
}  // namespace pangu_pro

namespace top_p {
inline matrix const logits{
    {2.0, 1.0, 0.5, -1.0, 0.0}, {5.0, 0.0, 0.5, -1.0, 1.0}, {0.5, 0.4375, 0.25, 0.0, 0.125}};
inline id_matrix const ids{{0, -1}, {0, -1}, {0, 1}};
inline matrix const weights{
    {0.5630212318141845, 0}, {0.9627962672817098, 0}, {0.2492501443759452, 0.23414884153490773}};
}  // namespace top_p

// The four tokens that several cases share: before any route is dropped.
namespace top_two {
inline id_matrix const ids{{0, 1}, {1, 0}, {0, 2}, {2, 0}};
inline matrix const weights{{0.7310585786300049, 0.2689414213699951},
                            {0.7310585786300049, 0.2689414213699951},
                            {0.8519528019683106, 0.1480471980316895},
                            {0.6224593312018546, 0.37754066879814546}};
// Which of the routes to its expert a route is, if none is dropped and first choices come first.
inline id_matrix const locations{{0, 1}, {0, 2}, {1, 1}, {0, 3}};
}  // namespace top_two

namespace mesh_top_two {
inline matrix const logits{{2.0, 1.0, 0.5, -1.0},
                           {1.5, 2.5, 0.0, 0.25},
                           {5.0, 0.75, 1.25, -0.5},
                           {1.75, 0.875, 2.25, 0.125}};
inline id_matrix const ids{{0, 1}, {1, 0}, {0, 2}, {2, 0}};
inline matrix const weights{{0.7310585777530867, 0.26894142104739494},
                            {0.731058577798746, 0.26894142106419205},
                            {0.9770226290954345, 0.022977369886636276},
                            {0.6224593304351561, 0.3775406683331193}};
// After the second choice of the third token is left out at random.
inline id_matrix const taken{{0, 1}, {1, 0}, {0, -1}, {2, 0}};
inline id_matrix const locations{{0, 1}, {0, 2}, {1, -1}, {0, 3}};
inline double const load_balance = 1.4874809712769852;
}  // namespace mesh_top_two

}  // namespace cases
