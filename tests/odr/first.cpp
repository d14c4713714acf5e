// SPDX-License-Identifier: Apache-2.0
#include <expar/expar.hpp>

int second();

int main() {
  expar::self_communicator comm;
  bool const lawful = expar::broken_communicator_law(expar::host_context{}, comm).empty();
  return lawful ? second() : 1;
}
