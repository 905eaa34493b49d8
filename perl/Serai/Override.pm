package Serai::Override;

# exit, fork and caller as the code of tenants sees them. Loaded before all other code:
# an override reaches what is compiled after it.

use v5.36;

our $running = 0;     # pid that runs a CGI script in this moment
our $status = 0;    # what the script gave exit
our $stuck;         # called where a script cannot be left
our $leaving;       # called before a script is left
our $child = 0;     # pid of a script's own process
our $connection;      # handle of the worker's connection
our @at_exit;         # run when the process exits by exit(), not by _exit

# exit of a persistent script ends the script. `last` leaves evals of the
# script too, as exit must; where it cannot (in a handler, a sort sub, DESTROY) the
# process ends with the script, when the reply has been sent.
sub leave_script {
    $status = $_[0] // 0;
    $leaving->() if $leaving;
    no warnings 'exiting';
    eval { last SERAI_SCRIPT };
    $stuck->() if $stuck;
    die bless {}, 'Serai::Exit';
}

# A background child must not hold the connection of its worker.
sub fork_closing {
    my $pid = CORE::fork;
    if (defined $pid && $pid == 0 && $connection) {
        close $connection;
        undef $connection;
    }
    return $pid;
}

BEGIN {
    no warnings 'once';
    *CORE::GLOBAL::exit = sub :prototype(;$) {
        leave_script(@_) if $running == $$;
        CORE::exit(@_ ? $_[0] : 0);
    };
    *CORE::GLOBAL::fork = sub :prototype() { fork_closing() };
}

# hide_callers lets code that is compiled from now on see a script as its
# outermost caller, as it is in a process of its own.
sub hide_callers () {
    no warnings 'once';
    *CORE::GLOBAL::caller = \&callers unless defined &CORE::GLOBAL::caller;
}

sub callers :prototype(;$) {
    my $level = @_ ? $_[0] + 1 : 1;
    my @frame = (CORE::caller 0)[0] eq 'DB' ? frame_with_arguments($level + 1) : CORE::caller $level;
    if ($running == $$ || $child == $$) {
        for (my $i = 1; $i <= $level; $i++) {
            my $sub = (CORE::caller $i)[3] // last;
            return if $sub eq 'main::serai_main';
        }
    }
    return $frame[0] if !wantarray;
    return @_ || !@frame ? @frame : @frame[0 .. 2];
}

# Perl sets @DB::args where the package that asks is DB.
sub frame_with_arguments {
    package DB;
    return CORE::caller $_[0];
}

END { $_->() for splice @at_exit }

1;
