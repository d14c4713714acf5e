// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstdio>

// The main of Catch2's library, compiled already. The linker puts the next in its place.
extern "C" int __real_main(int argc, char** argv);

// Says which device ran the tests; 77 means that there is none, so that nothing was tested.
extern "C" int __wrap_main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);  // a run may be cut off
  int devices = 0;
  cudaError_t const code = cudaGetDeviceCount(&devices);
  if (devices == 0) {
    std::printf("expar gpu tests: no device (%s); nothing was tested\n", cudaGetErrorString(code));
    return 77;
  }
  cudaDeviceProp properties{};
  static_cast<void>(cudaGetDeviceProperties(&properties, 0));
  bool const interpreted = dlsym(RTLD_DEFAULT, "ptxsim_counts") != nullptr;
  std::printf("expar gpu tests: on the %s device \"%s\", compute capability %d.%d\n",
              interpreted ? "interpreted" : "real", properties.name, properties.major,
              properties.minor);
  return __real_main(argc, argv);
}
