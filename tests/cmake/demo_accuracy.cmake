# SPDX-License-Identifier: Apache-2.0
# Runs DEMO to its end; the line "test accuracy: NN.NN%" shows at least BOUND.

execute_process(COMMAND "${DEMO}"
  OUTPUT_VARIABLE output ERROR_VARIABLE errors RESULT_VARIABLE result)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "the demo ended with ${result}:\n${output}${errors}")
endif()
if(NOT output MATCHES "test accuracy: *([0-9.]+)%")
  message(FATAL_ERROR "the demo prints no test accuracy:\n${output}")
endif()
message(STATUS "test accuracy: ${CMAKE_MATCH_1}%")
if(CMAKE_MATCH_1 LESS BOUND)
  message(FATAL_ERROR "the test accuracy is below ${BOUND}%")
endif()
