package Serai::Program;

# A run of a script: the process is made to look like one of its own, and what
# the run has changed is undone after it.

use v5.36;
use IO::Handle;
use POSIX ();
use Serai::Override;
use Serai::Reply;
use Serai::Stream;

our $now;         # the script that runs inside this process in this moment
my %STANDARD;     # name → the glob, as it was at first
my %handlers;     # what %SIG is between runs
my $handlers;     # the same, as handlers() has it
my $worker = 0;   # the process that this is true of
my $null;         # a handle on /dev/null
my $random = '';  # bytes for seeds

# begin is called once, before the first script is compiled.
sub begin () {
    open $null, '<', '/dev/null' or die "open /dev/null: $!\n";
    %STANDARD = (STDIN => *STDIN, STDOUT => *STDOUT, STDERR => *STDERR);
    $Serai::Override::leaving = \&at_end;
}

# standard opens one of the standard handles anew, on its descriptor, with
# nothing left of what was done to it: ties, layers, formats' state, $|.
sub standard ($name, $how, $number, $from) {
    no strict 'refs';
    *$name = $STANDARD{$name};
    untie *$name if tied *$name;
    close *$name;
    defined POSIX::dup2(fileno $from, $number) or die "$name: $!\n";
    open my $new, "$how&=", $number or die "$name: $!\n";
    *$name = *$new{IO};
}

# rest puts the standard handles where the worker has them.
sub rest () {
    standard('STDIN', '<', 0, $null);
    standard('STDOUT', '>', 1, $Serai::Scripts::LOG);
    standard('STDERR', '>', 2, $Serai::Scripts::LOG);
    STDERR->autoflush(1);
    select STDOUT;
}

# layers are those of a standard handle, as binmode takes them.
sub layers ($name) {
    no strict 'refs';
    return join '', map { ":$_" } grep { !/\A(?:unix|perlio)\z/ } PerlIO::get_layers(*$name, output => $name ne 'STDIN');
}

# handlers is %SIG in a form that is quickly compared.
sub handlers () { return join ' ', map { $_ // '' } values %SIG }

sub set_handlers ($want) {
    for my $name (keys %SIG) {
        next if ($SIG{$name} // '') eq ($want->{$name} // '');
        if (defined $want->{$name}) { $SIG{$name} = $want->{$name} }
        elsif ($name =~ /\A__/) { delete $SIG{$name} }
        else { $SIG{$name} = 'DEFAULT' }
    }
}

# forget_files lets files be read anew by the next run: those that are no modules,
# those that a function of @INC has made, and modules that did not load.
sub forget_files () { delete $INC{$_} for grep { !/\.pm\z/ || ref $INC{$_} || !defined $INC{$_} } keys %INC }

# set_environment makes %ENV so. Most requests differ in few variables, and each
# that is set costs.
sub set_environment ($want, $without) {
    delete @$want{@$without};
    for my $name (keys %ENV) { delete $ENV{$name} if !exists $want->{$name} }
    for my $name (keys %$want) {
        my $is = $ENV{$name};
        $ENV{$name} = $want->{$name} if !defined $is || $is ne $want->{$name};
    }
}

# seed gives each run random numbers of its own, as a new process has them.
sub seed () {
    if (length $random < 4) {
        open my $file, '<:raw', '/dev/urandom' or die "open /dev/urandom: $!\n";
        sysread $file, $random, 256 or die "read /dev/urandom: $!\n";
    }
    srand unpack 'L', substr $random, -4, 4, '';
}

# enter makes the process look to the script like one of its own.
sub enter ($script, $cgi, $input, $output) {
    set_environment({ %$cgi, %{ $script->{env} } }, $script->{unset});
    standard('STDIN', '<', 0, $input);
    standard('STDOUT', '>', 1, $output);
    binmode STDOUT, ':via(Serai::Stream)' if $script->{streams} && $now;
    for my $name (grep { length $script->{layers}{$_} } keys %{ $script->{layers} }) {
        no strict 'refs';
        binmode *$name, $script->{layers}{$name};
    }
    select STDOUT;
    $| = $script->{autoflush};
    *STDOUT = $script->{format} if $script->{format};
    chdir($script->{cwd} // $script->directory) or die "chdir: $!\n";
    umask $script->{umask} if defined $script->{umask};
    @INC = @{ $script->{inc} } if $script->{inc};
    seed();
    $^T = time;
    no strict 'refs';
    no warnings 'once';
    if ($INC{'CGI.pm'}) {
        CGI::initialize_globals();
        ${"CGI::$_"} = $script->{cgi}{$_} for keys %{ $script->{cgi} // {} };
    }
    if ($INC{'CGI/Carp.pm'}) {
        patch_carp();
        ${"CGI::Carp::$_"} = $script->{carp}{$_} for keys %{ $script->{carp} // {} };
        @CGI::Carp::WARNINGS = ();
        CGI::Carp::set_progname($script->{name});
    }
    FindBin::again() if $INC{'FindBin.pm'};
    if (defined $script->{data}) {
        my $data = Serai::Symbols::glob_of("$script->{data_in}::DATA");
        open *$data, $script->{data_utf8} ? '<:utf8' : '<', \$script->{data};
        seek *$data, $script->{data_at}, 0;
    }
    { no warnings; my $none = \do { local *NONE }; my $at = tell $none }    # so that $. is of no handle
    $. = undef;
    $SIG{$_} = $script->{handlers}{$_} for keys %{ $script->{handlers} };
    $! = 0;
}

# at_end is called when the script's last statement has run, or it exits.
sub at_end () { $now->{pads}->let_go if $now }

# run runs the script in this process and undoes what it changed. It returns
# the error that the script died of.
sub run {    # without a signature, for @_
    my ($script, $cgi, $input, $output, @arguments) = @_;
    my @inc = @INC;
    my $files = keys %INC;
    my ($pid, $umask, $ends) = ($$, umask, scalar @{ Serai::Script::ends_of_perl() });
    my ($error, $whole);
    ($worker, $handlers, %handlers) = ($$, handlers(), %SIG) if $worker != $$;
    $script->{symbols}->show;
    SERAI_SCRIPT: {
        local *0 = \(my $title = $script->{path});
        local @ARGV = @arguments;
        local ($/, $,, $\, $", $;, $:, $^L, $^A, $^F, $^W) = ("\n", undef, undef, ' ', "\034", " \n-", "\f", '', 2, $script->{warn});
        local ($@, $!, $?) = ('', 0, 0);
        local $_;
        local *_ = \@ARGV;    # what shift takes from, outside of subs
        $now = $script;
        eval { enter($script, $cgi, $input, $output); 1 } or do { $error = $@; last SERAI_SCRIPT };
        ($Serai::Override::running, $Serai::Override::status) = ($$, 0);
        eval { &{ $script->{code} }; 1 } or $error = ref $@ eq 'Serai::Exit' ? undef : "$@";
    }
    if ($$ != $pid) { Serai::Worker::flush_all(); POSIX::_exit(0) }    # a child that came back instead of ending
    undef $now;
    run_ends($script, $ends, \$error);
    SERAI_SCRIPT: { eval { $whole = $script->{pads}->take_back; $whole &= $script->{symbols}->forget; 1 } or $error //= "$@" }
    $Serai::Override::running = 0;
    $script->{spent} = 1 if !$whole;
    File::Temp::cleanup() if $INC{'File/Temp.pm'};
    rest();
    { package main; reset }    # of ?patterns? that match once
    alarm 0;
    umask $umask;
    @INC = @inc;
    forget_files() if $files != keys %INC;
    set_handlers(\%handlers) if $handlers ne handlers();
    return $error;
}

# run_ends runs the END blocks of a script, those that were added to so many too.
sub run_ends ($script, $ends, $error) {
    local $? = defined $$error ? 255 : $Serai::Override::status;
    for my $end (Serai::Script::new_ends($ends), @{ $script->{ends} }) {
        SERAI_SCRIPT: { eval { $end->(); 1 } or ref $@ eq 'Serai::Exit' or $$error //= "$@" }
    }
}

# end_here ends a script that cannot be left, with all that is its own.
sub end_here ($script) {
    undef $now;
    my $error;
    run_ends($script, scalar @{ Serai::Script::ends_of_perl() }, \$error);
    SERAI_SCRIPT: { eval { $script->{symbols}->forget; 1 } }
    $Serai::Override::running = 0;
    rest();
    return $error;
}

# become makes this process, a child of the worker, the script's.
sub become {
    my ($script, $cgi, $input, $output, @arguments) = @_;
    $Serai::Override::running = 0;
    @Serai::Override::at_exit = ();
    $SIG{$_} = 'DEFAULT' for grep { !/\A__/ && ref $SIG{$_} } keys %SIG;
    @ARGV = @arguments;
    if ($script->{mode} eq 'exec') {
        # A Perl script that is not executable runs persistently too.
        my @command = -x $script->{path} ? $script->{path} : ('/usr/bin/perl', split(' ', $script->{switches}), $script->{path});
        %ENV = %$cgi;
        open STDIN, '<&', $input and open STDOUT, '>&', $output and chdir $script->directory
            and exec { $command[0] } @command, @arguments;
        print STDERR "Serai: exec $script->{name}: $!\n";
        POSIX::_exit(127);
    }
    $Serai::Override::child = $$;
    Serai::Stack::answer_too();
    *0 = \(my $title = $script->{path});
    $^W = $script->{warn};
    enter($script, $cgi, $input, $output);
    close $_ for $input, $output;    # a child that closes its standard handles must not hold the reply
    @Serai::Override::at_exit = @{ $script->{ends} };
    *_ = \@ARGV;
    &{ $script->{code} };
    CORE::exit(0);
}

# CGI::Carp asks whether an eval will catch an error. The server's own does not
# count.
sub patch_carp () {
    no warnings qw(redefine once);
    *CGI::Carp::ineval = sub {
        for (my $i = 1; my ($package, undef, undef, $sub) = CORE::caller $i; $i++) {
            return $package ne __PACKAGE__ if $sub eq '(eval)';
        }
        return 0;
    };
}

1;
