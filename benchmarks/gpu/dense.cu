// SPDX-License-Identifier: Apache-2.0
#include "suite.hpp"

#if !__has_include(<cublas_v2.h>)
namespace bench {
void measure_dense(suite&, problem const&) {}
}  // namespace bench
#else
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <dlfcn.h>

#include <expar/gpu/permute/decode.cuh>
#include <expar/gpu/permute/encode.cuh>

#include "reference.cuh"

namespace bench {
namespace {

/// The T x E x C mask of GShard and fairseq: one at the place of a route, or its weight. Cleared
/// beforehand, and then k entries to a token, instead of the products of one-hot tensors that build
/// it there.
__global__ void dense_mask(std::int32_t const* row_of, float const* weights, int routes, int k,
                           std::int64_t slots, __nv_bfloat16* mask) {
  int const i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < routes && row_of[i] >= 0)
    mask[i / k * slots + row_of[i]] = __float2bfloat16(weights == nullptr ? 1.f : weights[i]);
}

/// The functions of cuBLAS, from a library that is looked for when the program runs: without it
/// only the dense einsum is left out.
struct cublas_library {
  decltype(&cublasCreate) create = nullptr;
  decltype(&cublasDestroy) destroy = nullptr;
  decltype(&cublasSetStream) set_stream = nullptr;
  decltype(&cublasSetWorkspace) set_workspace = nullptr;
  cublasStatus_t (*gemm)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int,
                         void const*, void const*, cudaDataType, int, void const*, cudaDataType,
                         int, void const*, void*, cudaDataType, int, cublasComputeType_t,
                         cublasGemmAlgo_t) = nullptr;
  std::string missing;

  static cublas_library const& get() {
    static cublas_library const one;
    return one;
  }

 private:
  cublas_library() {
    std::string const name = "libcublas.so." + std::to_string(CUBLAS_VER_MAJOR);
    void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    auto const find = [&](char const* symbol, auto& function) {
      if (library != nullptr)
        function =
            reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, symbol));
      if (function == nullptr && missing.empty())
        missing = name + (library == nullptr ? "" : std::string(" with ") + symbol);
    };
    find("cublasCreate_v2", create), find("cublasDestroy_v2", destroy);
    find("cublasSetStream_v2", set_stream), find("cublasSetWorkspace_v2", set_workspace);
    find("cublasGemmEx", gemm);
  }
};

/// A handle with a workspace, so that it can be captured; none where cuBLAS does not start.
class blas {
 public:
  explicit blas(cudaStream_t s) : workspace_(32 << 20) {
    if (!library_.missing.empty() || library_.create(&handle_) != CUBLAS_STATUS_SUCCESS)
      handle_ = nullptr;
    if (handle_ == nullptr) return;
    library_.set_stream(handle_, s);
    library_.set_workspace(handle_, workspace_.data(), workspace_.bytes());
  }
  blas(blas const&) = delete;
  ~blas() {
    if (handle_ != nullptr) library_.destroy(handle_);
  }
  bool works() const { return handle_ != nullptr; }

  /// Row-major c [rows,columns] = op(a) b with b [inner,columns], bf16 summed in fp32; op
  /// transposes an a of [inner,rows].
  void multiply(array<bf16> const& a, bool transposed, array<bf16> const& b, array<bf16> const& c,
                std::int64_t rows, std::int64_t columns, std::int64_t inner) const {
    float const one = 1, zero = 0;
    auto const n = [](std::int64_t x) { return static_cast<int>(x); };
    auto const code =
        library_.gemm(handle_, CUBLAS_OP_N, transposed ? CUBLAS_OP_T : CUBLAS_OP_N, n(columns),
                      n(rows), n(inner), &one, b.data(), CUDA_R_16BF, n(columns), a.data(),
                      CUDA_R_16BF, n(transposed ? rows : inner), &zero, c.data(), CUDA_R_16BF,
                      n(columns), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    expar::detail::expects(code == CUBLAS_STATUS_SUCCESS, "benchmark: cublasGemmEx gave ",
                           static_cast<int>(code));
  }

 private:
  cublas_library const& library_ = cublas_library::get();
  cublasHandle_t handle_ = nullptr;
  array<unsigned char> workspace_;
};

}  // namespace

/// The layer of fairseq and GShard between gate and experts, against encode and decode with the
/// same layout [E,C,H], C = k * ceil(T / E), which drops what exceeds it. Dispatch multiplies with
/// the transposed mask, combine with the mask of weights.
void measure_dense(suite& s, problem const& p) {
  if (p.ids_drawn != spread::uniform ||
      (!s.wants("dense_encode", p) && !s.wants("dense_decode", p)))
    return;
  expar::fixed_capacity const layout{1};
  auto const capacity = expar::capacity_of(layout, p.tokens, p.experts, p.top_k, 0);
  std::int64_t const slots = capacity * p.experts, h = p.hidden, n = p.routes();
  double const bytes = 2. * static_cast<double>((p.tokens + slots) * h + p.tokens * slots);
  if (!s.fits("dense/" + p.name, bytes)) return;
  blas const gemm(s.stream());
  if (!gemm.works())
    s.note("dense einsum left out: " + (cublas_library::get().missing.empty()
                                            ? "cuBLAS does not start"
                                            : cublas_library::get().missing + " is missing"));

  array<bf16> const x = random_rows(s.stream(), p.tokens * h, 1);
  array<bf16> const y = random_rows(s.stream(), slots * h, 2), mask(p.tokens * slots);
  array<float> const weights = random_weights(s.stream(), n, 3);
  array<std::int32_t> const ids(p.ids);
  expar::gpu::route_plan plan(s.context());
  expar::gpu::make_plan(s.context(),
                        expar::make_view(ids.data(), p.tokens, expar::index_t{p.top_k}), p.experts,
                        layout, plan);

  // Places in the order of (choice, token), as fixed_capacity and GShard give them.
  std::vector<std::int32_t> next(static_cast<std::size_t>(p.experts)), row_of(p.ids.size(), -1);
  std::int64_t kept = 0;
  for (int j = 0; j < p.top_k; ++j)
    for (int t = 0; t < p.tokens; ++t) {
      auto const at = static_cast<std::size_t>(t * p.top_k + j);
      auto const id = p.ids[at];
      if (auto const place = next[static_cast<std::size_t>(id)]++; place < capacity)
        row_of[at] = static_cast<std::int32_t>(id * capacity + place), ++kept;
    }
  array<std::int32_t> const rows(row_of);
  reference truth(s.stream(), p, row_of);

  auto const fill = [&](float const* values) {
    ok(cudaMemsetAsync(mask.data(), 0, mask.bytes(), s.stream()), "cudaMemsetAsync");
    dense_mask<<<blocks_for(n, 256), 256, 0, s.stream()>>>(
        rows.data(), values, static_cast<int>(n), p.top_k, slots,
        reinterpret_cast<__nv_bfloat16*>(mask.data()));
  };
  auto const view = [&](array<bf16> const& a, std::int64_t count) {
    return expar::make_view(a.data(), count, h);
  };
  auto const wrong_rows = [&](int) { return truth.encoded(x.data(), y.data()); };
  auto const wrong_tokens = [&](int) { return truth.decoded(y.data(), weights.data(), x.data()); };
  constexpr char algorithm[] = "einsum with a T x E x C mask on cuBLAS: fairseq, GShard";
  double const least = static_cast<double>((p.tokens + kept) * p.row_bytes() + 8 * n);
  auto const ours = [](std::function<void(int)> run, std::function<std::string(int)> wrong,
                       array<bf16> const& out) {
    return variant{variant::kind::expar, "expar", "", std::move(run), std::move(wrong), {out}};
  };
  auto const dense = [&](std::function<void(int)> run, std::function<std::string(int)> wrong,
                         array<bf16> const& out) {
    return variant{gemm.works() ? variant::kind::peer : variant::kind::limit,
                   "dense einsum",
                   algorithm,
                   gemm.works() ? std::move(run) : nullptr,
                   std::move(wrong),
                   {out}};
  };
  double const cleared = static_cast<double>((slots - kept) * p.row_bytes());
  if (s.wants("dense_encode", p))
    s.measure({"dense_encode",
               p,
               least + cleared,
               bytes,
               1,
               {ours(
                    [&](int) {
                      expar::gpu::encode(s.context(), plan, view(x, p.tokens), view(y, slots));
                    },
                    wrong_rows, y),
                dense(
                    [&](int) {
                      fill(nullptr);
                      gemm.multiply(mask, true, x, y, slots, h, p.tokens);
                    },
                    wrong_rows, y)}});
  if (s.wants("dense_decode", p)) {
    s.measure({"dense_decode",
               p,
               least,
               bytes,
               1,
               {ours(
                    [&](int) {
                      expar::gpu::decode(
                          s.context(), plan, view(y, slots),
                          expar::make_view(weights.data(), p.tokens, expar::index_t{p.top_k}),
                          view(x, p.tokens));
                    },
                    wrong_tokens, x),
                dense(
                    [&](int) {
                      fill(weights.data());
                      gemm.multiply(mask, false, y, x, p.tokens, h, slots);
                    },
                    wrong_tokens, x)}});
  }
}

}  // namespace bench
#endif
