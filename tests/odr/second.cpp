// SPDX-License-Identifier: Apache-2.0
// Short names that headers of a system define as macros: <termios.h>, <windows.h>.
#define B0 0000000
#define near
#define far
#include <expar/expar.hpp>

int second();

int second() {
  expar::self_communicator comm;
  return expar::broken_communicator_law(expar::host_context{}, comm).empty() ? 0 : 1;
}
