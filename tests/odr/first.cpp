// SPDX-License-Identifier: Apache-2.0
#include <expar/expar.hpp>
#include <expar/laws.hpp>

#include "routing.hpp"

int second();
#ifdef EXPAR_WIDE
int wide_sum();
#endif

int main() {
  expar::self_communicator comm;
  bool const lawful = expar::broken_communicator_law(expar::host_context{}, comm).empty();
#ifdef EXPAR_WIDE
  if (__builtin_cpu_supports("avx2") && wide_sum() != sum_of_ids()) return 2;
#endif
  return lawful ? second() : 1;
}
