# SPDX-License-Identifier: Apache-2.0
# Runs DEMO to its end, with experts whole and in shards. The line "test accuracy: NN.NN%" shows at
# least 98.5%, and "checksum: ..." what it is on every machine.

function(check_run wanted)
  execute_process(COMMAND "${DEMO}" ${ARGN}
    OUTPUT_VARIABLE output ERROR_VARIABLE errors RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "the demo ended with ${result}:\n${output}${errors}")
  endif()
  if(NOT output MATCHES "test accuracy: *([0-9.]+)%")
    message(FATAL_ERROR "the demo prints no test accuracy:\n${output}")
  endif()
  message(STATUS "${ARGN}: test accuracy ${CMAKE_MATCH_1}%")
  if(CMAKE_MATCH_1 LESS 98.5)
    message(FATAL_ERROR "the test accuracy is below 98.5%")
  endif()
  if(NOT output MATCHES "checksum: ${wanted}\n")
    message(FATAL_ERROR "the checksum is not ${wanted}:\n${output}")
  endif()
endfunction()

check_run(069b8616ccac7250 --ranks 4)
check_run(de6783593cc698d0 --ranks 16)
