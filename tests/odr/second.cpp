// SPDX-License-Identifier: Apache-2.0
// Short names that headers of others define as macros: <termios.h>, <windows.h>, <complex.h>, Qt,
// <AssertMacros.h>.
#define B0 0000000
#define near
#define far
#define small char
#define interface struct
#define IN
#define OUT
#define I (__extension__ 1.0iF)
#define slots
#define signals public
#define emit
#define foreach(x, all) for (x : all)
#define check(assertion) static_cast<void>(0)
#define verify(assertion) static_cast<void>(0)
#define require(assertion, label) static_cast<void>(0)
#include <expar/expar.hpp>
#include <expar/laws.hpp>

int second();

int second() {
  expar::self_communicator comm;
  return expar::broken_communicator_law(expar::host_context{}, comm).empty() ? 0 : 1;
}
