// SPDX-License-Identifier: Apache-2.0
#include <expar/gpu/detail/buffer.cuh>

#include <expar/gpu/plan/plan.cuh>
#include <expar/gpu/router/route.cuh>
#include <expar/router/router.hpp>

#include "gpu/device.cuh"
#include "support/catch.hpp"

using expar_test::device_array;
using expar_test::require_success;

namespace {

/// The stream that is said to be captured; none where it is null.
cudaStream_t said_to_be_captured = nullptr;

/// While one lives, a stream is captured; where the device captures none, the stream says that it
/// is. What was captured is thrown away.
class capture {
 public:
  explicit capture(cudaStream_t s) : stream_(s) {
    auto const code = cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal);
    real_ = code != cudaErrorNotSupported;
    if (real_)
      require_success(code);
    else
      static_cast<void>(cudaGetLastError()), said_to_be_captured = s;
  }
  capture(capture const&) = delete;
  ~capture() {
    cudaGraph_t graph = nullptr;
    said_to_be_captured = nullptr;
    if (real_ && cudaStreamEndCapture(stream_, &graph) == cudaSuccess)
      static_cast<void>(cudaGraphDestroy(graph));
  }

 private:
  cudaStream_t stream_;
  bool real_;
};

}  // namespace

// The question of this program passes here on its way to the runtime.
extern "C" cudaError_t CUDARTAPI cudaStreamIsCapturing(cudaStream_t stream,
                                                       cudaStreamCaptureStatus* status) {
  static auto* const of_runtime =
      reinterpret_cast<decltype(&cudaStreamIsCapturing)>(dlsym(RTLD_NEXT, "cudaStreamIsCapturing"));
  if (stream != said_to_be_captured || stream == nullptr) return of_runtime(stream, status);
  *status = cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

TEST_CASE("a buffer grows, and never while its stream is captured") {
  expar_test::own_stream const stream;
  expar::gpu::context const ctx(stream);
  expar::gpu::detail::buffer<int> b(ctx);
  REQUIRE(b.data() == nullptr);
  {
    capture const now(stream.get());
    REQUIRE_THROWS_WITH(b.resize("test", 10),
                        "expar: test: 40 bytes are needed and 0 are there; none are allocated "
                        "while the stream is captured, so do it once before");
    REQUIRE_FALSE(b.resize("test", 0));
  }
  REQUIRE(b.resize("test", 10));
  int* const at = b.data();
  {
    capture const now(stream.get());
    REQUIRE_FALSE(b.resize("test", 10));
    REQUIRE_THROWS_WITH(b.resize("test", 11),
                        "expar: test: 44 bytes are needed and 40 are there; none are allocated "
                        "while the stream is captured, so do it once before");
    expar::gpu::detail::buffer<int> const scratch(ctx, 3);  // of the graph
    REQUIRE(scratch.data() != nullptr);
  }
  REQUIRE(b.data() == at);
  REQUIRE_FALSE(b.resize("test", 9));
  REQUIRE(b.resize("test", 11));
}

TEST_CASE("a plan that would have to grow while its stream is captured stays what it was") {
  expar_test::own_stream const stream;
  expar::gpu::context const ctx(stream);
  device_array<std::int32_t> const few({0, 2, 2, 1}), many(std::vector<std::int32_t>(20000, 1));
  auto const small = expar::make_view(few.data(), 2, 2),
             large = expar::make_view(many.data(), 10000, 2);
  auto const make = [&](auto ids, expar::gpu::route_plan& plan) {
    expar::gpu::make_plan(ctx, ids, 3, expar::ragged{}, plan);
  };
  std::string const sentence =
      "none are allocated while the stream is captured, so do it once before";
  expar::gpu::route_plan fresh(ctx), made(ctx);
  make(small, made);
  auto const rows = expar_test::rows_of(ctx, made);
  REQUIRE(rows == std::vector<long long>{0, 2, 3, 1});
  {
    capture const now(stream.get());
    REQUIRE_THROWS_WITH(make(small, fresh), Catch::Matchers::StartsWith("expar: plan: ") &&
                                                Catch::Matchers::EndsWith(sentence));
    REQUIRE_THROWS_WITH(make(large, made), Catch::Matchers::StartsWith("expar: plan: ") &&
                                               Catch::Matchers::EndsWith(sentence));
    make(small, made);  // needs nothing
  }
  REQUIRE(made.tokens() == 2);
  REQUIRE(expar_test::rows_of(ctx, made) == rows);
  REQUIRE(fresh.tokens() == 0);
  make(large, made);
  REQUIRE(expar::gpu::read_sync(ctx, made).counts == std::vector<expar::index_t>{0, 20000, 0});
  make(small, fresh);
  REQUIRE(expar_test::rows_of(ctx, fresh) == rows);
}

TEST_CASE("what an operation needs while it runs is allocated in a capture too") {
  expar_test::own_stream const stream;
  expar::gpu::context const ctx(stream);
  constexpr int tokens = 3, experts = 4;
  expar::router const router({.experts = experts, .top_k = 1}, expar::soft_cap{20},
                             expar::softmax_score{}, expar::score_key{});
  device_array<float> const logits(std::vector<float>(tokens * experts, 1)),
      weights(std::vector<float>(tokens, 0));
  device_array<std::int32_t> const ids(std::vector<std::int32_t>(tokens, 0));
  REQUIRE(expar::gpu::route_workspace_bytes(router, tokens) > 0);
  capture const now(stream.get());
  expar::gpu::route(ctx, router, expar::make_view(logits.data(), tokens, experts),
                    expar::routes_view{expar::make_view(ids.data(), tokens, 1),
                                       expar::make_view(weights.data(), tokens, 1)});
}
