// error: expar: this type is not a communicator: rank() and size() return int and do not throw
// SPDX-License-Identifier: Apache-2.0
#include <expar/laws.hpp>

struct group {
#ifdef EXPAR_MISTAKE
  long rank() const {
    return 0;
  }
#else
  int rank() const noexcept {
    return 0;
  }
#endif
  int size() const noexcept {
    return 1;
  }
};

int main() {
  group comm;
  return expar::broken_communicator_law(expar::host_context{}, comm).empty() ? 0 : 1;
}
