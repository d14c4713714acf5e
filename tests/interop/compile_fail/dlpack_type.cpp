// error: expar: DLPack has no name for this element type; specialize expar::dlpack::type
// SPDX-License-Identifier: Apache-2.0
#include <expar/interop/dlpack.hpp>

#ifndef EXPAR_MISTAKE
template <>
inline constexpr DLDataType expar::dlpack::type<expar::float8_e4m3>{10, 8, 1};
#endif

int main() {
  DLTensor tensor{};
  expar::dlpack::view<expar::float8_e4m3, 2> const typed(tensor);
  return static_cast<int>(typed.size());
}
