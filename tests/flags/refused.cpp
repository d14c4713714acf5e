// SPDX-License-Identifier: Apache-2.0
// Compiled with options that the library refuses.
#include <expar/expar.hpp>
