// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The laws of tensors and communicators, for types of your own; they need no test framework.
#include <expar/laws/communicator.hpp>
#include <expar/laws/tensor.hpp>
