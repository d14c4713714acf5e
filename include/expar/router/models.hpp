// SPDX-License-Identifier: Apache-2.0
#pragma once

/// The routers of published models and systems, as values: expar::models. Each is one composition
/// of policies; copy and change it where yours differs. models.md lists them all, beside what is no
/// router for this purpose.
#include <expar/router/models/classical.hpp>
#include <expar/router/models/others.hpp>
#include <expar/router/models/research.hpp>
#include <expar/router/models/selected.hpp>
#include <expar/router/models/sigmoid.hpp>
#include <expar/router/models/softmax.hpp>
#include <expar/router/models/systems.hpp>
