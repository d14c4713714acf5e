# SPDX-License-Identifier: Apache-2.0
# Installs BUILD and moves the result to STAGE: an installed package knows no absolute path.

file(REMOVE_RECURSE "${STAGE}" "${STAGE}-first")
execute_process(COMMAND "${CMAKE_COMMAND}" --install "${BUILD}" --prefix "${STAGE}-first"
  COMMAND_ERROR_IS_FATAL ANY)
file(RENAME "${STAGE}-first" "${STAGE}")
