// SPDX-License-Identifier: Apache-2.0
#pragma once

#if __has_include(<nvtx3/nvtx3.hpp>)
#if defined(NVTX3_CPP_REQUIRE_EXPLICIT_VERSION)
#include <nvtx3/nvtx3.hpp>
#else  // as NVTX asks of libraries: any other version may be included beside this one
#define NVTX3_CPP_REQUIRE_EXPLICIT_VERSION
#include <nvtx3/nvtx3.hpp>
#undef NVTX3_CPP_REQUIRE_EXPLICIT_VERSION
#endif
#endif

namespace expar::inline v0::gpu::detail {

#if defined(NVTX3_CPP_DEFINITIONS_V1_0)
/// While one lives, profilers show the name of an operation in the domain "expar". Without a
/// profiler it costs two looks at a pointer that is null.
class named_range {
  struct domain {
    static constexpr char const* name = "expar";
  };
  nvtx3::v1::scoped_range_in<domain> range_;

 public:
  explicit named_range(char const* operation) : range_(operation) {}
};
#else
struct named_range {
  explicit named_range(char const*) {}
};
#endif

}  // namespace expar::inline v0::gpu::detail
