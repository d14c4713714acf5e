# SPDX-License-Identifier: Apache-2.0
# Installs BUILD and moves the result to STAGE: an installed package knows no absolute path. All that
# is in INCLUDE is there.

file(REMOVE_RECURSE "${STAGE}" "${STAGE}-first")
execute_process(COMMAND "${CMAKE_COMMAND}" --install "${BUILD}" --prefix "${STAGE}-first"
  COMMAND_ERROR_IS_FATAL ANY)
file(RENAME "${STAGE}-first" "${STAGE}")

file(GLOB_RECURSE wanted RELATIVE "${INCLUDE}" "${INCLUDE}/*")
file(GLOB_RECURSE installed RELATIVE "${STAGE}/include" "${STAGE}/include/*")
list(REMOVE_ITEM wanted ${installed})
if(wanted)
  message(FATAL_ERROR "not installed: ${wanted}")
endif()
