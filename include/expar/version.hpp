// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The version of the library; the build system reads these three lines and nothing else.
#define EXPAR_VERSION_MAJOR 0
#define EXPAR_VERSION_MINOR 1
#define EXPAR_VERSION_PATCH 0
